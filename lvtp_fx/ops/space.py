"""Moving values between token spaces: gather, reduce, sizes, key bias, restore.

Letters: B batch, L tokens with prefix and suffix, N grid tokens of the parent space, K kept, C channels.
"""

from __future__ import annotations

import torch

from lvtp_fx.ops.registry import op
from lvtp_fx.ops.row_entropy import additive
from lvtp_fx.ops.rows import rows

HIDDEN = -500.0  # and less hides a key: people write -inf, -1e9 and -1e4, the last perhaps scaled with the scores


@op("compose(Tensor outer, Tensor inner) -> Tensor")
def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """outer[b, inner[b, i]]: indices through two spaces. outer [B, K], inner [B, J] -> [B, J]."""
    return torch.gather(outer, 1, inner)


@op("repeat(Tensor per_image, int outer, int inner) -> Tensor")
def repeat(per_image: torch.Tensor, outer: int, inner: int) -> torch.Tensor:
    """[B, J] -> [outer * B * inner, J], for an axis that merges the batch with others (B*H of a bmm)."""
    count = per_image.shape[1]
    wide = per_image[None, :, None, :].expand(outer, -1, inner, count)
    return wide.reshape(-1, count)


def index_with_ends(index: torch.Tensor, before: int, after: int, parent: int) -> torch.Tensor:
    """Grid indices [B, J] as indices of a token axis with prefix and suffix tokens, which stay: [B, L']."""
    if not before and not after:
        return index
    ends = [torch.arange(n, device=index.device).expand(index.shape[0], n) + at
            for n, at in ((before, 0), (after, before + parent))]
    return torch.cat([ends[0], index + before, ends[1]], dim=1)


@op("gather(Tensor x, Tensor index, int batch_dim, int token_dim, int before, int after) -> Tensor")
def gather(
    x: torch.Tensor, index: torch.Tensor, batch_dim: int, token_dim: int, before: int, after: int
) -> torch.Tensor:
    """Tokens of x by `index`, per image; used for both coercions, down (`kept`) and up (`owner`).

    Args:
        x: a tensor with `before` + N + `after` entries along token_dim, and B or 1 along batch_dim.
        index: [B, J] int64 into the N grid tokens.

    Returns:
        x with `before` + J + `after` along token_dim and B along batch_dim.
    """
    full = index_with_ends(index, before, after, x.shape[token_dim] - before - after)
    shape = [1] * x.ndim
    shape[batch_dim], shape[token_dim] = full.shape
    if token_dim < batch_dim:
        full = full.transpose(0, 1)
    target = list(x.shape)
    target[batch_dim], target[token_dim] = index.shape[0], shape[token_dim]
    source = list(x.shape)
    source[batch_dim] = index.shape[0]
    return torch.gather(x.expand(source), token_dim, full.reshape(shape).expand(target))


@op("ones(Tensor position) -> Tensor")
def ones(position: torch.Tensor) -> torch.Tensor:
    """Size 1 for each token of the full grid: [B, N] float32."""
    return torch.ones(position.shape, dtype=torch.float32, device=position.device)


@op("shown(Tensor mask, Tensor position, int before, int after) -> Tensor")
def shown(mask: torch.Tensor, position: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Size 1 for each token of the full grid that some other token may attend to, 0 for those that the mask hides from
    all (padding): [B, N] float32.

    Args:
        mask: broadcastable to [B, H, L, L], boolean (true: attend) or additive: there `HIDDEN` and less hides a key.
            That a token sees itself does not count: rows of padding often see nothing else, lest a softmax be nan.
        position: [B, N] int64.
    """
    L = before + position.shape[1] + after
    seen = mask if mask.dtype == torch.bool else mask > HIDDEN
    while seen.ndim < 4:
        seen = seen.unsqueeze(0)
    seen = seen.expand(-1, -1, -1, L).any(1)
    if seen.shape[1] == L > 1:
        seen = seen & ~torch.eye(L, dtype=torch.bool, device=seen.device)
    return seen[..., before : L - after].any(1).to(torch.float32).expand(position.shape)


@op("sizes(Tensor size, Tensor owner, int kept) -> Tensor")
def sizes(size: torch.Tensor, owner: torch.Tensor, kept: int) -> torch.Tensor:
    """How many tokens of the full grid each kept token stands for, hidden ones left out: [B, K] float32, from size
    [B, N]."""
    return torch.zeros(size.shape[0], kept, dtype=size.dtype, device=size.device).scatter_add(1, owner, size)


@op("merge(Tensor x, Tensor kept, Tensor dropped, Tensor owner, Tensor size, Tensor merged, int before, int after)"
    " -> Tensor")
def merge(
    x: torch.Tensor, kept: torch.Tensor, dropped: torch.Tensor, owner: torch.Tensor, size: torch.Tensor,
    merged: torch.Tensor, before: int, after: int,
) -> torch.Tensor:
    """Each kept token becomes the size-weighted mean of the tokens it owns: [B, before + K + after, C]. One that owns
    hidden tokens only (size 0) stays as it is.

    Args:
        x: [B, before + N + after, C]. size: [B, N] float32, of the tokens of x. merged: [B, K], of `lvtp.sizes`.
        kept: [B, K] int64, ascending. dropped: [B, N - K] int64, the others, ascending.
        owner: [B, N] int64, indices into `kept`; kept tokens own themselves.
    """
    wide = torch.promote_types(x.dtype, size.dtype)  # half types would lose the small members of a large cluster
    weight = size.unsqueeze(-1).to(wide)
    grid = x[:, before : x.shape[1] - after]
    # Only dropped tokens are added up: a scatter costs far more than a gather.
    into = torch.gather(owner, 1, dropped).unsqueeze(-1).expand(-1, -1, x.shape[2])
    total = merged.unsqueeze(-1).to(wide)
    sums = rows(grid, kept).to(wide) * torch.where(total > 0, rows(weight, kept), 1.0)
    sums = sums.scatter_add(1, into, rows(grid, dropped).to(wide) * rows(weight, dropped))
    mean = (sums / total.clamp(min=1)).to(x.dtype)
    if not before and not after:
        return mean
    return torch.cat([x[:, :before], mean, x[:, x.shape[1] - after :]], dim=1)


@op("key_bias(Tensor? mask, Tensor size, int before, int after, int batch_dim, Tensor like) -> Tensor")
def key_bias(
    mask: torch.Tensor | None, size: torch.Tensor, before: int, after: int, batch_dim: int, like: torch.Tensor
) -> torch.Tensor:
    """Proportional attention: log size added to the score of every key; prefix and suffix tokens count once, and so
    do hidden tokens (size 0), which the attention's own mask hides.

    Args:
        mask: the attention's own mask, boolean or additive, or None.
        size: [B, K] float32.
        like: the queries, with B along batch_dim; gives dtype and rank.

    Returns:
        B along batch_dim, L along the last axis, 1 elsewhere; added to the mask where there is one.
    """
    bias = size.clamp(min=1).log()
    if before or after:
        bias = torch.nn.functional.pad(bias, (before, after))
    shape = [1] * like.ndim
    shape[batch_dim], shape[-1] = bias.shape
    bias = bias.to(like.dtype).reshape(shape)
    if mask is None:
        return bias
    return additive(mask, like.dtype) + bias


@op("restore(Tensor now, Tensor entered, Tensor left, Tensor owner, int before, int after) -> Tensor")
def restore(
    now: torch.Tensor, entered: torch.Tensor, left: torch.Tensor, owner: torch.Tensor, before: int, after: int
) -> torch.Tensor:
    """Undo one reduction of the residual stream: [B, before + N + after, C].

    Each token is as it entered, plus its owner now, minus its owner as it left the reduction (kept tokens own
    themselves). Prefix and suffix tokens are as they are now, and so is the dtype: a sum may have been wider.

    Args:
        now: [B, before + K + after, C], the stream after later blocks.
        entered: [B, before + N + after, C], left: [B, before + K + after, C], before and after the reduction.
        owner: [B, N] int64 into the K kept tokens.
    """
    body = slice(before, now.shape[1] - after)
    into = owner.unsqueeze(-1).expand(-1, -1, now.shape[2])
    old = entered[:, before : entered.shape[1] - after]
    grid = (old + torch.gather(now[:, body] - left[:, body], 1, into)).to(now.dtype)
    if not before and not after:
        return grid
    return torch.cat([now[:, :before], grid, now[:, now.shape[1] - after :]], dim=1)


@op("restore_between(Tensor now, Tensor entered, Tensor left, Tensor supports, Tensor shares, int before, int after)"
    " -> Tensor")
def restore_between(
    now: torch.Tensor, entered: torch.Tensor, left: torch.Tensor, supports: torch.Tensor, shares: torch.Tensor,
    before: int, after: int,
) -> torch.Tensor:
    """`restore`, from several kept tokens: each token is as it entered, plus the mean of how its supports have changed
    since the reduction, weighted by their shares.

    Args:
        supports: [B, N, count] int64 into the K kept tokens. shares: [B, N, count] float32, of sum 1.
        Others as of `restore`.
    """
    change = now[:, before : now.shape[1] - after] - left[:, before : left.shape[1] - after]
    grid = entered[:, before : entered.shape[1] - after]
    for support, share in zip(supports.unbind(-1), shares.to(now.dtype).unbind(-1), strict=True):
        grid = grid + share.unsqueeze(-1) * rows(change, support)
    grid = grid.to(now.dtype)
    if not before and not after:
        return grid
    return torch.cat([now[:, :before], grid, now[:, now.shape[1] - after :]], dim=1)


@op("restore_frozen(Tensor now, Tensor entered, Tensor kept, int before, int after) -> Tensor")
def restore_frozen(
    now: torch.Tensor, entered: torch.Tensor, kept: torch.Tensor, before: int, after: int
) -> torch.Tensor:
    """Undo one reduction: kept tokens as they are now, dropped ones as they entered it.

    Args:
        now: [B, before + K + after, C]. entered: [B, before + N + after, C]. kept: [B, K] int64.
    """
    index = index_with_ends(kept, before, after, entered.shape[1] - before - after)
    return entered.to(now.dtype).scatter(1, index.unsqueeze(-1).expand(-1, -1, now.shape[2]), now)
