"""Captions to a trained model. Whatever is imported from here needs the extra `train`."""

from cart_qdrant.extras import require

require("train")
