"""A RAG chain of LangChain over an index of media.

    python docs/examples/rag_langchain.py .demo/.cartq "a rabbit on a meadow"

`model` is scripted, so that this runs without any: put a chat model of yours in its place.
"""

import sys

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from cart_qdrant import Retriever
from cart_qdrant_langchain import CartQdrantRetriever

PROMPT = ChatPromptTemplate.from_template(
    "Answer from these clips alone, and name the seconds.\n{clips}\nQuestion: {question}"
)


def shown(documents: list[Document]) -> str:
    """One line for each clip."""
    return "\n".join(
        "- {path} {start:.1f}-{end:.1f} s: ".format(**one.metadata) + one.page_content
        for one in documents
    )


def scripted(prompt: PromptValue) -> AIMessage:
    """Answers with the first clip of the prompt."""
    first = next(line for line in prompt.to_string().splitlines() if line.startswith("- "))
    return AIMessage(f"Look at {first.removeprefix('- ')}")


def main(index: str, question: str) -> None:
    """Ask one question."""
    with Retriever.open(index) as engine:
        clips = CartQdrantRetriever(retriever=engine, k=3)
        model = RunnableLambda(scripted)  # for example ChatOpenAI(model=...)
        asked = {"clips": clips | shown, "question": RunnablePassthrough()}
        chain = asked | PROMPT | model | StrOutputParser()
        print(chain.invoke(question))


if __name__ == "__main__":
    main(*sys.argv[1:])
