"""Use a collection from LangChain: a retriever in a chain, and a reranker after another retriever.

    pip install 'edje-qdrant[langchain]'
    python examples/07_langchain.py ["a red star above a blue ring"] [INDEX]

Searches the collection of 01_ingest.py.
"""

from __future__ import annotations

import sys

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from edje_qdrant import TwoStageRetriever
from edje_qdrant.integrations.langchain import EDJEDocumentReranker, EDJERetriever


def main(text: str = "a red star above a blue ring", index: str = "example-index") -> None:
    """Search in a chain, then let the joint encoder sort the documents of another retriever."""
    with TwoStageRetriever.open(index) as retriever:
        pictures = EDJERetriever(retriever=retriever, search_kwargs={"num_candidates": 50})
        chain = pictures | RunnableLambda(paths_of)
        print("found:", ", ".join(chain.invoke(text, top_k=3)))

        # Documents of any retriever can be used, if their metadata name an image.
        documents = sorted(pictures.invoke(text, top_k=10), key=lambda document: document.id or "")
        reranker = EDJEDocumentReranker(scorer=retriever, top_n=3)
        for document in reranker.compress_documents(documents, text):
            fields = document.metadata
            print(f"#{fields['rank']}  logit {fields['score']:+.2f}  {fields['path']}")


def paths_of(documents: list[Document]) -> list[str]:
    """Stand for what a chain does with the images it gets."""
    return [document.metadata["path"] for document in documents]


if __name__ == "__main__":
    main(*sys.argv[1:])
