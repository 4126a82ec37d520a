"""Frames to tiles and back in Triton. Frames are uint8 (h, w, 3) BGR; tiles and detail are RGB planes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reflect(at, length):
    """Coordinates reflected in the end pixels, which are not repeated (2 1 0 1 2), for ever."""
    period = tl.maximum(2 * length - 2, 1)
    at = ((at % period) + period) % period
    return tl.minimum(at, tl.where(length > 1, period - at, 0))


@triton.jit
def four_columns(x):
    """The columns of (lanes, 4), each (lanes,)."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def sixteen_in_order(columns):
    """(lanes, 16) of sixteen columns. What is joined first becomes the highest bit of the place."""
    for level in tl.static_range(4):
        joined = ()
        for i in tl.static_range(8 >> level):
            joined = joined + (tl.join(columns[i], columns[i + (8 >> level)]),)
        columns = joined
    return tl.reshape(columns[0], (columns[0].shape[0], 16))


@triton.jit
def words_of_16_pixels(FRAME, start, mask):
    """48 bytes of each lane from byte `start` on, as twelve tuples' entries uint32 (lanes,).

    Rows of a frame begin anywhere, so the aligned vectors of 16 bytes around them are read, and moved into place by
    words and bytes. None is read without a byte that is asked for; such a vector never leaves the frame's allocation.
    """
    address = FRAME.to(tl.int64) + start
    first = (address & 15).to(tl.int32)
    chunk = (address - first).to(tl.pointer_type(tl.int32))
    at = tl.multiple_of(chunk, 16)[:, None] + tl.arange(0, 4)[None, :]
    words = ()
    for i in tl.static_range(3):
        words = words + four_columns(tl.load(at + 4 * i, mask=mask[:, None], other=0).to(tl.uint32, bitcast=True))
    last = tl.load(at + 12, mask=(mask & (first > 0))[:, None], other=0)
    words = words + four_columns(last.to(tl.uint32, bitcast=True))
    by_two, by_one, bits = first >= 8, (first & 4) > 0, ((first & 3) * 8).to(tl.uint64)
    moved = ()
    for i in tl.static_range(14):
        moved = moved + (tl.where(by_two, words[i + 2], words[i]),)
    words = ()
    for i in tl.static_range(13):
        words = words + (tl.where(by_one, moved[i + 1], moved[i]).to(tl.uint64),)
    moved = ()
    for i in tl.static_range(12):
        moved = moved + ((((words[i + 1] << 32) | words[i]) >> bits).to(tl.uint32),)
    return moved


@triton.jit
def frame_tiles(
    FRAME, OUT, height, width, columns, tile_h, tile_w, stride_y, stride_x, halo, pixels, lanes, LANES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of lanes, tiles). OUT: (tiles, 3, pixels = tile_h * tile_w), in [-1, 1].

    lanes: of a tile, each 16 pixels of a row. One that reaches beyond the frame reads its reflections byte by byte.
    """
    tile = tl.program_id(1)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    groups = lanes // tile_h
    row, left = lane // groups, (lane % groups) * 16
    y = reflect((tile // columns) * stride_y - halo + row, height)
    x = (tile % columns) * stride_x - halo + left
    used = lane < lanes
    whole = used & (x >= 0) & (x + 16 <= width)
    line = FRAME + (y.to(tl.int64) * width * 3)[:, None]
    words = words_of_16_pixels(FRAME, (y.to(tl.int64) * width + x) * 3, whole)
    j = tl.arange(0, 16)[None, :]
    stored = used[:, None] & (left[:, None] + j < tile_w)
    torn = stored & (whole[:, None] == 0)
    some_torn = tl.max(tl.where(whole, 0, used.to(tl.int32)), axis=0) > 0
    target = OUT + tile.to(tl.int64) * 3 * pixels + (row * tile_w + left)[:, None] + j
    for c in tl.static_range(3):
        columns_16 = ()
        for i in tl.static_range(16):
            word = words[(3 * i + 2 - c) // 4]
            columns_16 = columns_16 + ((word >> (8 * ((3 * i + 2 - c) % 4))).to(tl.uint8),)
        level = sixteen_in_order(columns_16)
        if some_torn:
            beyond = tl.load(line + reflect(x[:, None] + j, width) * 3 + (2 - c), mask=torn, other=0)
            level = tl.where(torn, beyond, level)
        # The rounding of NumPy's division; the default one may be two units in the last place away.
        tl.store(target + c * pixels, tl.div_rn(level.to(tl.float32), 127.5) - 1.0, mask=stored)


@triton.jit
def cubic_tap(k, TAP: tl.constexpr):
    """OpenCV's weight (a = -0.75) of a tap for a sample k eighths beyond tap 1, times 2048: an integer, exactly."""
    if TAP == 0:
        weight = -3 * k * (8 - k) * (8 - k)
    elif TAP == 1:
        weight = (5 * k - 72) * k * k + 2048
    elif TAP == 2:
        weight = (5 * (8 - k) - 72) * (8 - k) * (8 - k) + 2048
    else:
        weight = -3 * k * k * (8 - k)
    return weight


@triton.jit
def phase_tap(phase, TAP: tl.constexpr):
    """Weight of LR pixel TAP - 2 beside its own for the four outputs of an LR pixel: taps 0 to 4, one of them 0."""
    k = (2 * phase + 5) % 8
    early, late = 0 * k, 0 * k
    if TAP < 4:
        early = cubic_tap(k, TAP)
    if TAP > 0:
        late = cubic_tap(k, TAP - 1)
    return tl.where(phase < 2, early, late)


@triton.jit
def base_lines(FRAME, first, x, phase, height, width, c, used):
    """Four LR rows from row `first` on, enlarged along x only: int32 (lanes, 4) times 2048 each, for sums along y.

    x: LR pixel of each lane; phase: 0 to 3. What is read serves eight outputs of an LR pixel.
    """
    lines = ()
    for i in tl.static_range(4):
        row = FRAME + tl.minimum(tl.maximum(first + i, 0), height - 1).to(tl.int64) * width * 3 + c
        line = tl.zeros_like(x[:, None] + phase[None, :])
        for j in tl.static_range(5):
            at = tl.minimum(tl.maximum(x + (j - 2), 0), width - 1) * 3
            line += phase_tap(phase, j)[None, :] * tl.load(row + at, mask=used, other=0).to(tl.int32)[:, None]
        lines = lines + (line,)
    return lines


@triton.jit
def bicubic_base(lines, up):
    """The bicubic x4 enlargement at output row `up` (0 to 3) of an LR pixel, as OpenCV rounds it: int32 (lanes, 4)."""
    k = (2 * up + 5) % 8
    total = cubic_tap(k, 0) * lines[0] + cubic_tap(k, 1) * lines[1] + cubic_tap(k, 2) * lines[2]
    total += cubic_tap(k, 3) * lines[3]
    return tl.minimum(tl.maximum((total + (1 << 21)) >> 22, 0), 255)


@triton.jit
def seam(at, index, count, core, fade):
    """For output coordinate `at` in a core: weight of its own tile, weight of a neighbour, index of the neighbour.

    core, fade: output pixels of a core, and of the cross-fade on each side of its borders. Weights are multiples of
    2^-12, as in rsd_edge/tiling.py.
    """
    local = at - index * core
    before = tl.where(index > 0, tl.where(local < fade, 1, 0), 0)
    after = tl.where(index + 1 < count, tl.where(local >= core - fade, 1, 0), 0)
    place = tl.where(before == 1, local + fade, local - core + fade).to(tl.float32)
    rise = tl.floor((place + 0.5) * (4096.0 / tl.maximum(2 * fade, 1).to(tl.float32)) + 0.5) * (1.0 / 4096.0)
    own = tl.where(before == 1, rise, tl.where(after == 1, 1.0 - rise, 1.0))
    return own, 1.0 - own, index - before + after


@triton.jit
def with_bytes(words, levels, up: tl.constexpr, c: tl.constexpr):
    """Six words, three an output row, with the bytes of four outputs of row `up` (0, 1) in channel c put into place.

    The twelve bytes of an LR pixel's four outputs in a row begin at a multiple of four.
    """
    filled = ()
    for i in tl.static_range(6):
        word = words[i]
        for k in tl.static_range(4):
            if i == 3 * up + (3 * k + c) // 4:
                word = word | (levels[k] << (8 * ((3 * k + c) % 4)))
        filled = filled + (word,)
    return filled


@triton.jit
def merge_tiles(
    DETAIL, FRAME, OUT, STRENGTH, NOT_FINITE, height, width, rows, columns, tile_h, tile_w, stride_y, stride_x, halo,
    feather, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of ROWS LR rows x 2, tile columns x blocks of COLUMNS LR columns of a core).

    A lane is an LR pixel, of whose four output rows it makes two, for which the same four LR rows count.

    DETAIL: (tiles, 3, 4 tile_h, 4 tile_w). OUT: the frame's bytes as int32 (4 height, 3 width), because byte by byte
    three times as many stores would start. NOT_FINITE: a word that becomes 1 where any detail of the frame is no
    number; all who write it write the same.
    """
    blocks = tl.cdiv(stride_x, COLUMNS)
    column = tl.program_id(1) // blocks
    lane, phase = tl.arange(0, ROWS * COLUMNS), tl.arange(0, 4)
    low = (tl.program_id(1) % blocks) * COLUMNS + lane % COLUMNS
    x, y = stride_x * column + low, (tl.program_id(0) // 2) * ROWS + lane // COLUMNS
    half = tl.program_id(0) % 2
    used = (low < stride_x) & (x < width) & (y < height)
    row = tl.minimum(y // stride_y, rows - 1)
    local = 4 * low[:, None] + phase[None, :]
    own_x, other_x, column_beside = seam(4 * stride_x * column + local, column, columns, 4 * stride_x, 4 * feather)
    fading_x = used[:, None] & (column_beside != column)
    line, plane = 4 * tile_w, 16 * tile_h * tile_w
    here = (row.to(tl.int64) * columns + column) * 3 * plane + (4 * (y - row * stride_y + halo) + 2 * half) * line
    at = here[:, None] + local + 4 * halo
    beside = (column_beside - column).to(tl.int64) * (3 * plane) - 4 * (column_beside - column) * stride_x
    # The four output rows of an LR row have the same neighbour.
    own_y, other_y, row_beside = seam(4 * y, row, rows, 4 * stride_y, 4 * feather)
    step = row_beside - row
    over = (step.to(tl.int64) * columns * (3 * plane) - 4 * step * stride_y * line)[:, None]
    fading_y = used & (step != 0)
    some_fading_y = tl.max(fading_y.to(tl.int32), axis=0) > 0
    gain = tl.load(STRENGTH) * 127.5
    empty = tl.zeros_like(x).to(tl.uint32)
    words = (empty,) * 6
    for c in tl.static_range(3):
        lines = base_lines(FRAME, y - 2 + half, x, phase, height, width, c, used)
        for up in tl.static_range(2):
            source = DETAIL + (2 - c) * plane + up * line + at
            value = own_x * tl.load(source, mask=used[:, None], other=0.0).to(tl.float32)
            value += other_x * tl.load(source + beside, mask=fading_x, other=0.0).to(tl.float32)
            own_y, other_y, row_beside = seam(4 * y + 2 * half + up, row, rows, 4 * stride_y, 4 * feather)
            if some_fading_y:
                faded = own_x * tl.load(source + over, mask=fading_y[:, None], other=0.0).to(tl.float32)
                across = tl.load(source + over + beside, mask=fading_x & fading_y[:, None], other=0.0)
                faded += other_x * across.to(tl.float32)
                value = own_y[:, None] * value + other_y[:, None] * faded
            # Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even, as OpenCV does.
            level = bicubic_base(lines, 2 * half + up).to(tl.float32) + gain * value + 12582912.0
            # Here, and not once at the end: what would be carried there makes registers spill.
            sound = tl.abs(tl.sum(level, axis=1)) < float("inf")
            tl.store(NOT_FINITE + tl.zeros_like(x), tl.full(x.shape, 1, tl.int32), mask=used & (sound == 0))
            level -= 12582912.0
            level = tl.minimum(tl.maximum(level, 0.0), 255.0).to(tl.uint32)
            words = with_bytes(words, four_columns(level), up, c)
    for up in tl.static_range(2):
        words_out = OUT + (4 * y + 2 * half + up).to(tl.int64) * (3 * width) + 3 * x
        for i in tl.static_range(3):
            tl.store(words_out + i, words[3 * up + i].to(tl.int32, bitcast=True), mask=used)
