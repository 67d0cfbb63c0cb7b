# The service with its page: see docs/service.md, and compose.yaml for it beside a Qdrant server.
#   docker build -t edje-qdrant .
#   docker run -p 127.0.0.1:8000:8000 -e EDJE_QDRANT_SERVICE_KEY=secret -v "$PWD/data:/data" edje-qdrant
FROM python:3.12-slim

# For a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY edje_qdrant edje_qdrant
# torch first and alone, so that the build that was asked for is the one that everything else finds.
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --constraint constraints.txt torch \
    && pip install --no-cache-dir --constraint constraints.txt '.[web]' \
    && useradd --create-home --uid 1000 edje \
    && install --directory --owner edje /data

USER 1000
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["edje-qdrant"]
CMD ["serve", "--host", "0.0.0.0", "--index", "/data/index", "--images", "/data/pictures"]
