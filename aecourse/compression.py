r"""Bits back: lossless compression with a VAE, where the negative ELBO is the size of the file.

A probability p is worth -log2 p bits, and :class:`ANS` reaches that. But p(x) of a VAE is unknown, and so the
sender chooses a z, sends it by p(z), then x by p(x|z): -log2 p(z) p(x|z) bits, more than -log2 p(x). What is
wasted is the freedom of choice. The sender gives it a use: he draws z from q(z|x) *by decoding it from the
message so far*, as if the bits at its end had been made by q. That shortens the message by -log2 q(z|x)
bits, and the receiver, who has x and therefore q, puts them back. On average over z an image costs

.. math:: \mathbb{E}_{q(z|x)}\left[-\log_2 p(x|z) - \log_2 p(z) + \log_2 q(z|x)\right]
          = -\mathrm{ELBO}(x) / \ln 2 \text{ bits.}

Source: Hinton & van Camp (1993); Townsend, Bird & Barber (2019), who found that the last in, first out order
of asymmetric numeral systems (Duda 2009) is what chains one image to the next.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from aecourse.contracts import check_batch, check_count, check_finite, check_labels, check_shapes
from aecourse.evaluate import evaluation_mode
from aecourse.likelihoods import Bernoulli, Categorical
from aecourse.vae import VAE

WORD = 32  # bits of a word of the message
LEAST = 1 << WORD  # the head of the message is at least this, and less than its square


class ANS:
    """A message as a stack: the symbol that was pushed last is popped first (rANS, Duda 2009).

    The top of the stack is a whole number of up to 64 bits, ``head``. To push a symbol of probability p makes
    it about 1 / p times as large; what no longer fits goes to ``words``, 32 bits at a time. To pop undoes
    that, number by number: each is the exact inverse of the other, in whichever order they come.

    Symbols are numbered from 0. Their probabilities are whole numbers, too: ``cumulative`` is a sequence that
    starts at 0 and ends at a power of two, 2^32 at most, and symbol s has the share from ``cumulative[s]`` to
    ``cumulative[s + 1]``. Sender and receiver need the same numbers; see :func:`integer_cdf`.
    """

    def __init__(self):
        self.head = LEAST
        self.words: list[int] = []

    @classmethod
    def random(cls, bits: int, seed: int = 0) -> "ANS":
        """A message of random bits, at least so many: bits-back coding needs some to begin with."""
        check_count("bits", bits)
        source, message = random.Random(seed), cls()
        message.words = [source.getrandbits(WORD) for _ in range(-(-bits // WORD))]
        message.head |= source.getrandbits(WORD)
        return message

    @property
    def bits(self) -> float:
        """The length of the message; 0 of an empty one."""
        return WORD * len(self.words) + math.log2(self.head) - WORD

    def push(self, symbol: int, cumulative: Sequence[int]) -> None:
        """Put a symbol on top.

        Raises:
            TypeError, ValueError: there is no such symbol, it has no share, or the shares are no whole
                numbers from 0 to a power of two.
        """
        precision = _precision(cumulative)
        if not 0 <= symbol < len(cumulative) - 1:
            raise ValueError(f"symbol is {symbol} but must be between 0 and {len(cumulative) - 2}.")
        start, share = cumulative[symbol], cumulative[symbol + 1] - cumulative[symbol]
        if share < 1:
            raise ValueError(f"symbol is {symbol}, whose share is {share}: what is impossible has no code.")
        head = self.head
        if head >= share << (2 * WORD - precision):  # else the new head would be too large
            self.words.append(head % LEAST)
            head >>= WORD
        self.head = (head // share << precision) + start + head % share

    def pop(self, cumulative: Sequence[int]) -> int:
        """Take the symbol on top.

        Raises:
            TypeError, ValueError: nothing is left, or shares as in :meth:`push`.
        """
        precision = _precision(cumulative)
        slot = self.head % (1 << precision)
        symbol = bisect_right(cumulative, slot) - 1
        start, share = cumulative[symbol], cumulative[symbol + 1] - cumulative[symbol]
        head = (self.head >> precision) * share + slot - start
        if head < LEAST:
            if not self.words:
                raise ValueError(
                    "The message has come to its end: there is nothing left to pop. Bits-back coding needs "
                    "random bits to begin with, ANS.random(bits), and decodes no more than was encoded."
                )
            head = (head << WORD) + self.words.pop()
        self.head = head
        return symbol

    def copy(self) -> "ANS":
        """Another message that holds the same."""
        message = type(self)()
        message.head, message.words = self.head, list(self.words)
        return message

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ANS) and (self.head, self.words) == (other.head, other.words)

    __hash__ = None  # it changes

    def to_bytes(self) -> bytes:
        """What to write into a file: the head in eight bytes, then every word in four, the top first."""
        words = (word.to_bytes(WORD // 8, "little") for word in reversed(self.words))
        return self.head.to_bytes(2 * WORD // 8, "little") + b"".join(words)

    @classmethod
    def from_bytes(cls, content: bytes) -> "ANS":
        """The message that was written by :meth:`to_bytes`.

        Raises:
            TypeError: ``content`` is not bytes.
            ValueError: it was not written so.
        """
        if not isinstance(content, bytes | bytearray):
            raise TypeError(f"content must be bytes, not {type(content).__name__}.")
        size = WORD // 8
        if len(content) < 2 * size or len(content) % size:
            raise ValueError(f"content has {len(content)} bytes but needs 8, and 4 more for every word.")
        numbers = [int.from_bytes(content[i : i + size], "little") for i in range(0, len(content), size)]
        message = cls()
        message.head, message.words = numbers[0] + (numbers[1] << WORD), numbers[:1:-1]
        if message.head < LEAST:
            raise ValueError(f"content begins with {message.head} but no message does, 2^32 is the least.")
        return message


def integer_cdf(cdf: Tensor, precision: int) -> Tensor:
    """Distribution functions as whole numbers, for :class:`ANS`: from 0 to 2^precision, strictly increasing.

    Every symbol gets a share of at least 1, however improbable: it can be coded.

    Args:
        cdf: ``(..., symbols - 1)``, P(symbol <= s) of all symbols but the last, where it is 1.
        precision: in bits, 1 to 32.

    Returns:
        ``(..., symbols + 1)``, int64, on the CPU. The same input gives the same numbers on every machine.

    Raises:
        TypeError, ValueError: ``cdf`` is no tensor of floats or holds NaN; ``precision`` is no such number,
            or too few for so many symbols.
    """
    check_shapes(("cdf", cdf, "..."))
    check_count("precision", precision)
    symbols = cdf.shape[-1] + 1
    if precision > WORD or 2**precision <= symbols:
        raise ValueError(f"precision is {precision} but must be at most 32, and 2^precision over {symbols}.")
    check_finite("cdf", cdf)
    free = 2**precision - symbols  # beyond the 1 of each
    inner = (cdf.cpu().double().clamp(0, 1) * free).round().long().cummax(dim=-1).values
    ends = inner.new_zeros(*inner.shape[:-1], 1)
    return torch.cat([ends, inner, ends + free], dim=-1) + torch.arange(symbols + 1, device="cpu")


class BitsBack:
    """Lossless compression of images with a trained VAE of binary or categorical pixels::

        coder, start = BitsBack(vae), ANS.random(1000)
        message = coder.encode(images, start)
        (message.bits - start.bits) / len(images)  # -vae.elbo(images) / log(2), on average
        images, start = coder.decode(message, len(images))

    A code z is one of finitely many: each latent variable falls into one of 2^latent_bits bins of equal
    probability under the prior, and stands for the middle of it (Townsend et al. 2019, section 2.5).

    **The receiver must compute what the sender computed**, to the last bit, for networks give floating-point
    numbers and a share that differs by 1 garbles the rest of the message. Both take one image after the
    other, in the same memory format. The same machine, version of torch and number of threads are up to you.

    Args:
        model: a :class:`aecourse.vae.VAE`, or one of p(x|y) whose ``given(labels)`` is one. Its likelihood
            is Bernoulli or categorical.
        latent_bits: of each latent variable, 1 to 16.
        precision: of all probabilities, in bits: more than ``latent_bits``, at most 32.

    Raises:
        TypeError, ValueError: another model or likelihood, numbers out of range.
    """

    def __init__(self, model, *, latent_bits: int = 10, precision: int = 24):
        check_count("latent_bits", latent_bits)
        check_count("precision", precision)
        if not latent_bits <= 16:
            raise ValueError(f"latent_bits is {latent_bits} but must be at most 16.")
        if not latent_bits < precision <= WORD:
            raise ValueError(f"precision is {precision} but must be over latent_bits and at most 32.")
        self.model, vae = model, model
        if self.conditional:
            vae = model.given(torch.zeros(1, dtype=torch.int64, device=_like(model).device))
        if not isinstance(vae, VAE) or any(getattr(type(vae), own) is not getattr(VAE, own) for own in OWN):
            raise TypeError(
                f"model is of type {type(model).__name__} but must be a VAE: q(z|x) a diagonal Gaussian, "
                "and the pixels independent given z."
            )
        likelihood = type(vae.likelihood)
        if likelihood not in (Bernoulli, Categorical):
            raise ValueError(
                f"likelihood is {likelihood.__name__} but must be Bernoulli or Categorical: under a density, "
                "no image has a probability."
            )
        self.levels = vae.likelihood.outputs if likelihood is Categorical else 2
        if 2**precision <= self.levels:
            raise ValueError(f"precision is {precision} but needs 2^precision over {self.levels} levels.")
        self.precision = precision
        self.prior = range(2**latent_bits + 1)  # shares of 1: all bins are equally probable
        count, scale = 2**latent_bits, math.sqrt(vae.prior_temperature)
        ticks = torch.arange(2 * count, dtype=torch.float64, device="cpu") / (2 * count)
        quantiles = scale * torch.special.ndtri(ticks)
        self.edges, self.middles = quantiles[2::2], quantiles[1::2]  # (count - 1,) and (count,)

    @torch.no_grad()
    def encode(
        self, images: Tensor, message: ANS, labels: Tensor | None = None, *, progress: bool = True
    ) -> ANS:
        """A new message: the images on top of ``message``, which stays as it is.

        Args:
            images: ``(N, *image_shape)``, of the dtype of the model: 0 and 1, or levels k / (levels - 1).
            message: to begin with, :meth:`ANS.random`. A few dozen bits for each latent variable suffice.
            labels: ``(N,)``, for a model of p(x|y); they are not part of the message.
            progress: show a progress bar.

        Raises:
            TypeError, ValueError: images that the likelihood cannot code, another shape or dtype, labels that
                do not fit, NaN from a network, or a message that is too short to begin with.
        """
        _check_message(message)
        symbols = self._symbols(images)
        self._check_labels(labels, len(images))
        message = message.copy()
        with evaluation_mode(self.model):
            # The image that comes last is popped first.
            for i in tqdm(reversed(range(len(symbols))), "encode", len(symbols), disable=not progress):
                self._push_image(message, symbols[i].tolist(), None if labels is None else labels[i : i + 1])
        return message

    @torch.no_grad()
    def decode(
        self, message: ANS, count: int, labels: Tensor | None = None, *, progress: bool = True
    ) -> tuple[Tensor, ANS]:
        """The first ``count`` images of a message, and the message without them, both exactly as they were.

        Args:
            message: from :meth:`encode`; it stays as it is.
            count: how many.
            labels: ``(count,)``, for a model of p(x|y).
            progress: show a progress bar.

        Raises:
            TypeError, ValueError: ``count`` is no count, labels that do not fit, a message that ends early.
        """
        _check_message(message)
        check_count("count", count)
        self._check_labels(labels, count)
        message, images = message.copy(), []
        with evaluation_mode(self.model):
            for i in tqdm(range(count), "decode", disable=not progress):
                pixels = self._pop_image(message, None if labels is None else labels[i : i + 1])
                images.append(self._image(pixels))
        return torch.cat(images), message

    def _push_image(self, message: ANS, pixels: list[int], label: Tensor | None) -> None:
        posterior = self._posterior(pixels, label)
        code = [message.pop(cumulative) for cumulative in posterior]  # z ~ q(z|x)
        for pixel, cumulative in zip(pixels, self._pixels(code, label)):
            message.push(pixel, cumulative)  # x by p(x|z)
        for z in code:
            message.push(z, self.prior)  # z by p(z)

    def _pop_image(self, message: ANS, label: Tensor | None) -> list[int]:
        """The same steps, each undone, from the last to the first."""
        code = [message.pop(self.prior) for _ in range(self.model.latent_dim)][::-1]
        pixels = [message.pop(cumulative) for cumulative in reversed(self._pixels(code, label))][::-1]
        posterior = self._posterior(pixels, label)
        for z, cumulative in zip(reversed(code), reversed(posterior)):
            message.push(z, cumulative)  # the bits are back
        return pixels

    def _posterior(self, pixels: list[int], label: Tensor | None) -> list[list[int]]:
        """Shares of the bins of every latent variable under q(z|x): the encoder's Gaussian between edges."""
        mean, logvar = self._vae(label).encode(self._image(pixels))
        check_finite("the encoder's mean", mean)
        check_finite("the encoder's logvar", logvar)
        mean, logvar = mean.cpu().double().T, logvar.cpu().double().T
        std = torch.exp(0.5 * logvar).clamp(min=torch.finfo(torch.float64).tiny)
        return integer_cdf(torch.special.ndtr((self.edges - mean) / std), self.precision).tolist()

    def _pixels(self, code: list[int], label: Tensor | None) -> list[list[int]]:
        """Shares of the levels of every pixel under p(x|z)."""
        z = self.middles[code].unsqueeze(0).to(_like(self.model))
        logits = self._vae(label).decoder_output(z)
        check_finite("the decoder's output", logits)
        logits = logits.cpu().double()
        if logits.dim() == len(self.model.image_shape) + 1:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)  # of black and white
        probabilities = logits.softmax(dim=1).flatten(2)[0].T
        return integer_cdf(probabilities.cumsum(dim=1)[:, :-1], self.precision).tolist()

    def _image(self, pixels: list[int]) -> Tensor:
        """``(1, *image_shape)``: what sender and receiver show to the encoder."""
        like = _like(self.model)
        values = torch.tensor(pixels, dtype=like.dtype, device=like.device) / (self.levels - 1)
        return values.view(1, *self.model.image_shape)

    def _symbols(self, images: Tensor) -> Tensor:
        """The level of every pixel, ``(N, pixels)`` int64, if there is one."""
        check_batch("images", images, self.model.image_shape)
        dtype = _like(self.model).dtype
        if images.dtype != dtype:
            raise TypeError(f"images has dtype {images.dtype} but the model's parameters have {dtype}.")
        check_finite("images", images)
        symbols = (images * (self.levels - 1)).round()
        exact = (symbols >= 0) & (symbols < self.levels) & (symbols / (self.levels - 1) == images)
        if not exact.all():
            where = tuple((~exact).nonzero()[0].tolist())
            grid = "0 and 1: binarise them" if self.levels == 2 else f"k / {self.levels - 1} of whole k"
            raise ValueError(
                f"images has the value {images[where].item():.9g} at {where}, but its likelihood can code "
                f"{self.levels} values only, {grid}."
            )
        return symbols.flatten(1).long()

    @property
    def conditional(self) -> bool:
        """Whether the model is one of p(x|y)."""
        return callable(getattr(self.model, "given", None))

    def _vae(self, label: Tensor | None) -> VAE:
        return self.model.given(label) if self.conditional else self.model

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        if self.conditional != (labels is not None):
            needs = "needs labels: it is one of p(x|y)" if self.conditional else "takes no labels"
            raise ValueError(f"model of type {type(self.model).__name__} {needs}.")
        if labels is not None:
            check_labels("labels", labels, (count,), self.model.classes)


OWN = ("encode", "decoder_output", "log_likelihood", "log_prior", "log_weights")
"""What a model must have of the plain VAE for its code to be as long as its bound."""


def _like(model) -> Tensor:
    return next(model.parameters())


def _check_message(message: ANS) -> None:
    if not isinstance(message, ANS):
        raise TypeError(f"message must be an ANS, not {type(message).__name__}: ANS.from_bytes reads a file.")


def _precision(cumulative: Sequence[int]) -> int:
    """The logarithm of where the shares end."""
    start, end = (cumulative[0], cumulative[-1]) if len(cumulative) > 1 else (0, 0)
    if not isinstance(end, int):
        kind = type(cumulative).__name__
        raise TypeError(
            f"cumulative is of type {kind} but must hold Python's whole numbers: take its .tolist()."
        )
    precision = end.bit_length() - 1
    if start != 0:
        raise ValueError(f"cumulative starts at {start} but must start at 0.")
    if end < 1 or end != 1 << precision or precision > WORD:
        raise ValueError(f"cumulative ends at {end} but must end at a power of two, 2^32 at most.")
    return precision
