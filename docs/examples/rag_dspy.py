"""A RAG program of DSPy over an index of media.

    python docs/examples/rag_dspy.py .demo/.cartq "a rabbit on a meadow"

`Scripted` stands for a model, so that this runs without any: put a `dspy.LM` in its place.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import dspy

from cart_qdrant import Retriever
from cart_qdrant_dspy import CartQdrantRM


class Scripted(dspy.BaseLM):
    """Answers with the first clip of the prompt."""

    def forward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
        """A reply in the form of DSPy's chat adapter."""
        lines = str(messages[-1]["content"]).splitlines()
        clip = json.loads(next(line for line in lines if line.startswith('["')))[0]
        reply = f"[[ ## answer ## ]]\nLook at {clip}\n[[ ## completed ## ]]"
        message = SimpleNamespace(content=reply)
        return SimpleNamespace(
            choices=[SimpleNamespace(message=message, finish_reason="stop")],
            usage={}, model="scripted",
        )  # fmt: skip


class Ask(dspy.Module):
    """Looks for clips, then answers from them."""

    def __init__(self, clips: CartQdrantRM) -> None:
        super().__init__()
        self.clips = clips
        self.answer = dspy.Predict("clips: list[str], question: str -> answer: str")

    def forward(self, question: str) -> Any:
        """One answer."""
        return self.answer(clips=self.clips(question).passages, question=question)


def main(index: str, question: str) -> None:
    """Ask one question."""
    with Retriever.open(index) as engine, dspy.context(lm=Scripted("scripted")):
        print(Ask(CartQdrantRM(engine, k=3))(question=question).answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
