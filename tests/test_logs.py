from __future__ import annotations

import logging

import pytest
from tiny_edje import build_tiny_model
from transformers import configuration_utils

from edje_qdrant.logs import without_messages


def test_only_the_messages_with_the_part_are_dropped_and_only_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("other.library")
    with without_messages("other.library", "defaults"):
        logger.warning("of the defaults: 1")
        logger.warning("of this file")
    logger.warning("of the defaults: 2")
    assert caplog.messages == ["of this file", "of the defaults: 2"]


def test_saving_a_model_does_not_warn_of_values_that_it_does_not_have(tmp_path, caplog) -> None:
    configuration_utils.logger.warning_once.cache_clear()  # another test may have caused it
    logger = logging.getLogger("transformers")  # it does not propagate to caplog's handler
    logger.addHandler(caplog.handler)
    try:
        build_tiny_model().save_pretrained(tmp_path / "model")
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.messages
