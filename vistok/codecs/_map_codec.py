"""What codecs of whole maps share: a VQ-VAE whose grid of ids is written between two markers.

Its own keys are the authors' under "network."; their files load as they are. B maps, S the side that the network sees,
h x w rows and columns of codes, N = h*w.
"""

from collections.abc import Mapping, Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.codecs._authors_keys import under_network
from vistok.codecs._item_ids import check_codes, ids_of_spans, item_ids
from vistok.codecs._token_text import Scanner, marked_spans
from vistok.layers.ait_vqvae import AitVqvae
from vistok.protocols import ParseError, Span
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor


class MapCodec(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """A codec gives its strings and overrides `inputs` and `outputs`, between what was perceived and the network."""

    cannot: frozenset[str] = frozenset()
    weights_under = ("weights",)

    def __init__(
        self, name: str, network: AitVqvae, image_size: int, ends: tuple[str, str], codes: tuple[str, ...], look: str
    ) -> None:
        """ends: markers before and behind the codes; look: what a reader would take for one of these strings.

        Raises: ValueError if the network's patches do not fill the image.
        """
        super().__init__()
        if image_size < 1 or image_size % network.downsample:
            raise ValueError(
                f"{name}: expected image_size to be a multiple of the network's downsample {network.downsample}, got "
                f"{image_size}"
            )
        self.name, self.network, self.image_size = name, network, image_size
        self.ends, self.codes = ends, codes
        self.grid = (image_size // network.downsample,) * 2
        self._scanner = Scanner(codes, ends, look)

    @property
    def strings(self) -> tuple[str, ...]:
        """Both markers, then the codes."""
        return (*self.ends, *self.codes)

    @property
    def num_tokens(self) -> int:
        """Codes of one map: those of the network's grid."""
        return self.grid[0] * self.grid[1]

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this codec share."""
        return TokenSpec(
            self.name, 0, (len(self.codes),), self.grid, self.network.downsample, (self.image_size, self.image_size)
        )

    def inputs(self, values: Tensor) -> Tensor:
        """What was perceived -> maps [B, C, S, S] as the network takes them."""
        raise NotImplementedError

    def outputs(self, maps: Tensor) -> Tensor:
        """Maps [B, C, S, S] of the network -> what was perceived."""
        raise NotImplementedError

    def encode(self, values: Tensor) -> TokenTensor:
        """What was perceived, [B, ...] as the codec says -> tokens in raster order: indices [B, N]."""
        ids = self.network.encode(self.inputs(values))
        coords = grid_coords(*self.grid, len(ids), ids.device)
        return TokenTensor(spec=self.spec, indices=ids.flatten(1), coords=coords)

    @torch.no_grad()
    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens of all N codes of their maps -> what was perceived, at the side S that the network sees.

        No gradient reaches ids; mixtures of codes go through `network.decode_vectors`, which has one.
        Raises: ValueError if codes are missing from the grid or are none.
        """
        return self.outputs(self.network.decode(self._ids(tokens).unflatten(1, self.grid)))

    def to_text(self, tokens: TokenTensor, labels: Sequence[str] | None = None) -> list[str]:
        """One text for each map, markers included, nothing between the tokens. Raises: ValueError if given labels."""
        if labels is not None:
            raise ValueError(f"{self.name}: expected no labels, its text has no place for any")
        begin, end = self.ends
        rows: list[list[int]] = self._ids(tokens).tolist()
        return [begin + "".join(self.codes[code] for code in row) + end for row in rows]

    def parse(self, text: str) -> list[Span | ParseError]:
        """Every span between the markers, and why those that are no whole map are none."""
        return marked_spans(text, self._scanner.words(text), *self.ends, self.num_tokens)

    def tokens(self, spans: Sequence[Span]) -> TokenTensor:
        """Spans of `parse` as tokens. Raises: ValueError for spans of another length or with codes that are none."""
        ids = ids_of_spans(self.name, spans, self.num_tokens)
        check_codes(self.name, ids, len(self.codes))
        return TokenTensor(spec=self.spec, indices=ids, coords=grid_coords(*self.grid, len(spans), ids.device))

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names under ours; our own stay."""
        return under_network(tensors)

    def _ids(self, tokens: TokenTensor) -> Tensor:
        return item_ids(self.name, tokens, self.num_tokens, len(self.codes))
