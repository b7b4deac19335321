"""A RAG pipeline of Haystack over an index of media.

    python docs/examples/rag_haystack.py .demo/.cartq "a rabbit on a meadow"

`Scripted` stands for a model, so that this runs without any: put a generator of yours in its place.
"""

import sys

from haystack import Pipeline, component
from haystack.components.builders import PromptBuilder

from cart_qdrant_haystack import CartQdrantRetriever

PROMPT = """Answer from these clips alone, and name the seconds.
{% for d in documents -%}
- {{ d.meta.path }} {{ d.meta.start|round(1) }}-{{ d.meta.end|round(1) }} s: {{ d.content }}
{% endfor %}
Question: {{ query }}"""


@component
class Scripted:
    """Answers with the first clip of the prompt."""

    @component.output_types(replies=list[str])
    def run(self, prompt: str) -> dict[str, list[str]]:
        """One reply."""
        first = next(line for line in prompt.splitlines() if line.startswith("- "))
        return {"replies": [f"Look at {first.removeprefix('- ')}"]}


def main(index: str, question: str) -> None:
    """Ask one question."""
    pipeline = Pipeline()
    pipeline.add_component("clips", CartQdrantRetriever(index, top_k=3))
    builder = PromptBuilder(PROMPT, required_variables=["documents", "query"])
    pipeline.add_component("prompt", builder)
    pipeline.add_component("model", Scripted())  # for example OpenAIGenerator(...)
    pipeline.connect("clips.documents", "prompt.documents")
    pipeline.connect("prompt.prompt", "model.prompt")
    found = pipeline.run({"clips": {"query": question}, "prompt": {"query": question}})
    print(found["model"]["replies"][0])


if __name__ == "__main__":
    main(*sys.argv[1:])
