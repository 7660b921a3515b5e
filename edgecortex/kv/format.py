"""How sealed KV is stored."""

from dataclasses import dataclass, replace

from edgecortex.errors import ConfigError


@dataclass(frozen=True)
class KVFormat:
    """The storage of a context's keys and values.

    The first `num_sinks` tokens and the newest 0 to `block - 1` stay unquantized, in 16 bits.
    Every `block` tokens in between are sealed together: quantized once, never touched again.
    Which keys a token sees quantized depends on its position alone, so results do not depend on
    how a prompt was cut into chunks, nor on whether KV was computed or loaded.

    `key_axis` is `channel` (groups of tokens per channel: KIVI, arXiv 2402.02750) or `token`
    (groups of channels per token: stock MLX). `rotate_keys` and `rotate_values` store them after
    a Hadamard transform (QuaRot, arXiv 2404.00456). `bits` None keeps all as it is.

    Raises:
        ConfigError: a value out of its range.
    """

    name: str
    bits: int | None = 4
    group_size: int = 64
    key_axis: str = "channel"
    rotate_keys: bool = True
    rotate_values: bool = True
    num_sinks: int = 4
    block: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (None, 4, 8):
            raise ConfigError(f"bits must be 4, 8 or None, got {self.bits!r}")
        if self.group_size not in (32, 64, 128):
            raise ConfigError(f"group_size must be 32, 64 or 128, got {self.group_size!r}")
        if self.key_axis not in ("channel", "token"):
            raise ConfigError(f"key_axis must be 'channel' or 'token', got {self.key_axis!r}")
        if self.block not in (64, 128, 256) or self.block % self.group_size:
            raise ConfigError(
                f"block must be 64, 128 or 256, and a multiple of group_size {self.group_size}, "
                f"got {self.block!r}"
            )
        if not 0 <= self.num_sinks <= 64:
            raise ConfigError(f"num_sinks must be between 0 and 64, got {self.num_sinks!r}")

    @property
    def row(self) -> int:
        """Columns of a full-precision row: the sinks and one block."""
        return self.num_sinks + self.block

    def row_length(self, num_tokens: int) -> int:
        """Columns in use after `num_tokens` tokens: the sinks, then the unsealed rest."""
        past_sinks = num_tokens - self.num_sinks
        return num_tokens if past_sinks <= 0 else self.num_sinks + past_sinks % self.block

    def share(self, num_tokens: int, most: int) -> int:
        """How many tokens to feed at once after `num_tokens`, at most `most`.

        A span attends block by block, so it goes to the end of a block; where not even one end
        is in reach, the rest of the block is cut into equal parts.
        """
        to_end = self.row - self.row_length(num_tokens)
        if most < to_end:
            num_parts = -(-to_end // most)
            return -(-to_end // num_parts)
        return to_end + (most - to_end) // self.block * self.block

    def num_sealed(self, num_tokens: int) -> int:
        """Tokens that are sealed once `num_tokens` have been fed."""
        return max(0, num_tokens - self.num_sinks) // self.block * self.block


KV4 = KVFormat("kv4")
_PLAIN = replace(KV4, rotate_keys=False, rotate_values=False)
FORMATS = {
    "kv4": KV4,
    "kv4u": replace(KV4, name="kv4u", rotate_keys=False),
    "kv8": replace(KV4, name="kv8", bits=8),
    "plain4": replace(_PLAIN, name="plain4", key_axis="token"),
    "fp": replace(_PLAIN, name="fp", bits=None),
}
AUTO = "auto"  # the best for a model, by measurement
