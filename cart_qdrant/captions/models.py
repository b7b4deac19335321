"""Models that write captions and transcripts: their protocols and adapters.

Shape legend: H height, W width, T time.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.compute import Compute, ComputeOptions, Work, choose
from cart_qdrant.embedders.hub import only_local
from cart_qdrant.errors import CaptionError, UsageError, first_line, hide_password
from cart_qdrant.extras import require

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from PIL import Image

Frame = npt.NDArray[np.uint8]

PROMPT = "Describe this picture in one short sentence: what is seen, and what happens."
KEY_VARIABLE = "CARTQ_CAPTION_KEY"
"""Environment variable that holds the key of a captioning endpoint."""
OPENAI = "https://api.openai.com/"
TRIES = 4
"""Requests that are sent to an endpoint for one image, at most."""
MAX_CAPTION_TOKENS = 60
"""Tokens of a caption, at most."""
_TASKS = {"florence": "<DETAILED_CAPTION>"}
"""Prompts of model families that take the name of a task instead of a sentence."""


@dataclass(frozen=True, slots=True)
class TranscriptSegment:
    """Speech between `start` and `end` (seconds)."""

    start: float
    end: float
    text: str


@runtime_checkable
class Captioner(Protocol):
    """Writes captions of images."""

    @property
    def name(self) -> str:
        """Name of the model, which is stored with each caption."""

    def caption(self, images: Sequence[Frame]) -> list[str]:
        """One caption for each RGB image (H, W, 3).

        Raises:
            CaptionError: The model failed.
        """


@runtime_checkable
class Transcriber(Protocol):
    """Transcribes speech."""

    @property
    def name(self) -> str:
        """Name of the model, which is stored with each caption."""

    def transcribe(self, samples: FloatArray, rate: int) -> list[TranscriptSegment]:
        """Speech in mono samples (T,), in time order; an empty list where nobody speaks.

        Args:
            samples: Samples in [-1, 1].
            rate: Samples per second.

        Raises:
            CaptionError: The model failed.
        """


def open_captioner(
    name: str, *, model: str | None = None, compute: ComputeOptions | None = None
) -> Captioner | Transcriber:
    """Open a captioner or transcriber by its name.

    Args:
        name: `hf:MODEL` (a name on the Hugging Face hub, or a folder), `whisper` or
            `whisper:MODEL`, or the URL of an endpoint that speaks OpenAI's chat protocol.
        model: Model of the endpoint.
        compute: Device and number format of a model that runs here.

    Raises:
        UsageError: The name is unknown, the model cannot be loaded, or an endpoint has no model; or
            this machine does not have the device, or the device not the number format.
        MissingExtraError: A package that the model needs is not installed.
    """
    if name.startswith(("http://", "https://")):
        if model is None:
            raise UsageError(f"The endpoint {name} needs a model.", "Add --model NAME")
        return EndpointCaptioner(name, model)
    if name.startswith("hf:"):
        return HubCaptioner(name.removeprefix("hf:"), compute)
    kind, _, size = name.partition(":")
    if kind == "whisper":
        return WhisperTranscriber(size or "small", compute)
    raise UsageError(
        f"--captioner is {name!r}, but must be labels, hf:MODEL, whisper, whisper:MODEL or a URL.",
        "cartq caption --help",
    )


class HubCaptioner:
    """Any image-text-to-text model of transformers: BLIP, Florence-2, Qwen-VL and others."""

    def __init__(self, model: str, options: ComputeOptions | None = None) -> None:
        require("caption", "torch", "transformers", "PIL")
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.name = f"hf:{model}"
        self.compute = choose(options or ComputeOptions(), Work.TRANSFORMER)
        try:
            # Their return types depend on the model.
            load_processor: Any = AutoProcessor.from_pretrained
            load_model: Any = AutoModelForImageTextToText.from_pretrained
            local = only_local(model)
            self._processor = load_processor(model, local_files_only=local)
            self._model = load_model(model, local_files_only=local)
            self._model.to(self.compute.device, self.compute.format).eval()
            tokenizer = getattr(self._processor, "tokenizer", None)
            if tokenizer is not None and not self._model.config.is_encoder_decoder:
                tokenizer.padding_side = "left"  # the generated text follows the prompt
        # Hub, folder, configuration, weights: each fails with its own kind of error.
        except Exception as error:
            raise UsageError(
                f"The captioning model {model!r} cannot be loaded: {first_line(error)}",
                "Name a model of the hub, or a folder that holds one: --captioner hf:FOLDER",
            ) from error

    def caption(self, images: Sequence[Frame]) -> list[str]:
        """One caption for each RGB image (H, W, 3).

        Raises:
            CaptionError: The model failed.
        """
        import torch
        from PIL import Image

        try:
            inputs = self._inputs([Image.fromarray(image) for image in images])
            with torch.inference_mode():
                found = self._model.generate(
                    **inputs, max_new_tokens=MAX_CAPTION_TOKENS, do_sample=False
                )
            read = inputs.get("input_ids")
            if read is not None and not self._model.config.is_encoder_decoder:
                # A decoder-only model returns its prompt too, unless it read embeddings.
                length = read.shape[1]
                whole = found.shape[1] > length and bool((found[:, :length] == read).all())
                found = found[:, length:] if whole else found
            texts: list[str] = self._processor.batch_decode(found, skip_special_tokens=True)
        except (RuntimeError, ValueError, TypeError) as error:
            raise CaptionError(f"{self.name} failed: {first_line(error)}.") from error
        return texts

    def _inputs(self, images: list[Image.Image]) -> dict[str, Any]:
        """The model's inputs for images: pixels in the format of its weights, token ids."""
        device, format_ = self.compute.device, self.compute.format
        return {
            name: x.to(device, format_ if x.is_floating_point() else None)
            for name, x in self._processed(images).items()
        }

    def _processed(self, images: list[Image.Image]) -> Any:
        """What the processor makes of images, with the prompt that the model expects."""
        family = self._model.config.model_type
        task = next((text for key, text in _TASKS.items() if key in family), None)
        if task is not None:
            return self._processor(images=images, text=[task] * len(images), return_tensors="pt")
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
            prompt = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            return self._processor(
                images=[[image] for image in images], text=[prompt] * len(images),
                return_tensors="pt", padding=True,
            )  # fmt: skip
        return self._processor(images=images, return_tensors="pt")


class WhisperTranscriber:
    """Transcribes speech with faster-whisper."""

    def __init__(self, model: str, options: ComputeOptions | None = None) -> None:
        require("speech", "faster_whisper")
        from faster_whisper import WhisperModel

        options = options or ComputeOptions()
        if options.device == "mps":
            raise UsageError(
                "--device is mps, but faster-whisper computes on cpu and cuda alone.",
                "Leave --device out.",
            )
        self.name = f"whisper:{model}"
        try:
            # It knows the quickest format of each processor, and needs no torch.
            self._model: WhisperModel = WhisperModel(
                model, device=options.device, compute_type=options.dtype,
                local_files_only=only_local(model),
            )  # fmt: skip
        except Exception as error:
            raise UsageError(
                f"The speech model {model!r} cannot be loaded: {first_line(error)}",
                "Name one of faster-whisper's sizes, or a folder: --captioner whisper:FOLDER",
            ) from error
        engine = self._model.model
        self.compute = Compute(engine.device, engine.compute_type)

    def transcribe(self, samples: FloatArray, rate: int) -> list[TranscriptSegment]:
        """Speech in mono samples (T,) at 16 kHz, in time order.

        Raises:
            UsageError: `rate` is not 16,000 samples a second.
            CaptionError: The model failed.
        """
        if rate != 16_000:
            raise UsageError(
                f"Audio has {rate} samples a second, but speech is transcribed at 16000."
            )
        try:
            segments, _ = self._model.transcribe(samples, vad_filter=True)
            # Whisper pads audio to 30 seconds, and may transcribe beyond the end.
            length = len(samples) / rate
            return [
                TranscriptSegment(segment.start, min(segment.end, length), segment.text.strip())
                for segment in segments
                if segment.text.strip() and segment.start < min(segment.end, length)
            ]
        except (RuntimeError, ValueError) as error:
            raise CaptionError(f"{self.name} failed: {first_line(error)}.") from error


class EndpointCaptioner:
    """A vision model behind an endpoint that speaks OpenAI's chat protocol.

    Its key is read from CARTQ_CAPTION_KEY, and for OpenAI's own address also from OPENAI_API_KEY.

    Args:
        url: Address of the endpoint, without `/chat/completions`.
        model: Name of the model.
        wait: Seconds before the second request for an image; each further wait is twice as long.
    """

    def __init__(self, url: str, model: str, *, wait: float = 1.0) -> None:
        self.name = model
        self._url = url.rstrip("/") + "/chat/completions"
        self._shown = hide_password(self._url)
        self._wait = wait
        key = os.environ.get(KEY_VARIABLE)
        if not key and url.startswith(OPENAI):
            key = os.environ.get("OPENAI_API_KEY")  # never sent to another server
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def caption(self, images: Sequence[Frame]) -> list[str]:
        """One caption for each RGB image (H, W, 3), by one request an image.

        Raises:
            CaptionError: The endpoint refuses, fails or does not answer.
        """
        require("media", "PIL")
        return [self._ask(image) for image in images]

    def _ask(self, image: Frame) -> str:
        import httpx
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        content = [
            {"type": "text", "text": PROMPT},
            {"type": "image_url", "image_url": {"url": picture}},
        ]
        body = {
            "model": self.name, "max_tokens": MAX_CAPTION_TOKENS,
            "messages": [{"role": "user", "content": content}],
        }  # fmt: skip
        for attempt in range(TRIES):
            try:
                response = httpx.post(self._url, json=body, headers=self._headers, timeout=120.0)
                busy = response.status_code == 429 or response.status_code >= 500
                if not busy:
                    response.raise_for_status()
                    text = response.json()["choices"][0]["message"]["content"]
                    if not isinstance(text, str):
                        raise CaptionError(f"{self.name} gives no text for an image.")
                    return text
                reason = f"it answers {response.status_code}"
            except httpx.InvalidURL as error:
                raise CaptionError(f"{self._shown} is no address: {error}.") from error
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            except httpx.HTTPStatusError as error:
                raise CaptionError(
                    f"{self._shown} refuses with {error.response.status_code}: "
                    f"{error.response.text[:200]}.",
                    f"Check --model, and the key in {KEY_VARIABLE}.",
                ) from error
            except (ValueError, LookupError, TypeError) as error:
                raise CaptionError(f"{self._shown} does not speak the chat protocol.") from error
            if attempt + 1 < TRIES:
                time.sleep(self._wait * 2**attempt)
        raise CaptionError(
            f"{self._shown} does not answer: {reason}.",
            "Run the command again: it goes on from here.",
        )
