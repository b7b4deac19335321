"""A query engine of LlamaIndex over an index of media.

    python docs/examples/rag_llamaindex.py .demo/.cartq "a rabbit on a meadow"

`Scripted` stands for a model, so that this runs without any: put an LLM of yours in its place.
"""

import sys
from typing import Any

from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer

from cart_qdrant import Retriever
from cart_qdrant_llamaindex import CartQdrantRetriever

PROMPT = PromptTemplate(
    "Answer from these clips alone, and name the seconds.\n{context_str}\nQuestion: {query_str}"
)


class Scripted(CustomLLM):
    """Answers with the first clip of the prompt."""

    @property
    def metadata(self) -> LLMMetadata:
        """Of no model."""
        return LLMMetadata(model_name="scripted")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The first clip: its fields stand before its caption."""
        lines = prompt.splitlines()
        facts = dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != "Q")
        return CompletionResponse(text=f"Look at {facts['path']} {facts['start']}-{facts['end']} s")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        """All at once."""
        yield self.complete(prompt)


def main(index: str, question: str) -> None:
    """Ask one question."""
    with Retriever.open(index) as engine:
        clips = CartQdrantRetriever(engine, k=1)
        synthesizer = get_response_synthesizer(llm=Scripted(), text_qa_template=PROMPT)
        answer = RetrieverQueryEngine(clips, synthesizer).query(question)
        print(answer)
        for node in answer.source_nodes:
            print("  from", node.metadata["path"], "-", node.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
