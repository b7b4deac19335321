"""A tiny speech model with random weights, in the form that faster-whisper loads."""

from __future__ import annotations

from pathlib import Path


def write_whisper(folder: Path) -> Path:
    """Make and convert one; returns the converted folder. It writes single letters at random."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from faster_whisper.tokenizer import _LANGUAGE_CODES
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    languages = [f"<|{code}|>" for code in _LANGUAGE_CODES]
    # Whisper's order: the model counts on it.
    marks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    tokenizer.add_special_tokens(
        ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{mark}|>" for mark in marks)]
    )
    tokenizer.add_tokens([f"<|{n * 0.02:.2f}|>" for n in range(1501)])
    end, begin = (tokenizer.token_to_id(f"<|{s}|>") for s in ("endoftext", "startoftranscript"))
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=tokenizer.get_vocab_size(), num_mel_bins=80, d_model=32,
            encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            decoder_start_token_id=begin, eos_token_id=end, bos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip
    config = model.generation_config
    config.lang_to_id = {mark: tokenizer.token_to_id(mark) for mark in languages}
    config.alignment_heads = [[0, 0]]
    config.suppress_tokens, config.begin_suppress_tokens = [], [end]
    config.no_timestamps_token_id = tokenizer.token_to_id("<|notimestamps|>")
    source = folder / "transformers"
    model.save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        source
    )
    WhisperFeatureExtractor().save_pretrained(source)
    TransformersConverter(
        str(source), copy_files=["tokenizer.json", "preprocessor_config.json"]
    ).convert(str(folder / "converted"))
    return folder / "converted"
