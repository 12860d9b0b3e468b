// The level of every channel and the id they form: how many borders lie below a value, for many values at a time.
//
// The channels repeat row after row, so the borders are laid out for a tile of rows once; every lane then counts the
// borders of its own channel.
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t kRows = 16;  // of a tile: a multiple of every vector's length, whatever the width

struct Tile {
    int64_t width, size, most;    // channels, values, borders of the channel with most
    std::vector<float> borders;   // [most][size], +inf where a channel has fewer
    std::vector<float> scale;     // [size]
    std::vector<int64_t> place;   // [width]
};

Tile tile_of(const float* borders, const int64_t* levels, int64_t width, int64_t stride, int64_t most) {
    Tile tile{width, kRows * width, most, {}, {}, {}};
    tile.borders.resize(most * tile.size);
    tile.scale.resize(tile.size);
    for (int64_t i = 0; i < tile.size; ++i) {
        const int64_t channel = i % width;
        for (int64_t m = 0; m < most; ++m) tile.borders[m * tile.size + i] = borders[channel * stride + m];
        tile.scale[i] = float(levels[channel] / 2);
    }
    int64_t place = 1;
    for (int64_t d = 0; d < width; place *= levels[d++]) tile.place.push_back(place);
    return tile;
}

// How many borders lie below each of Lanes::count values that start at place i of the tile.
void count_below(const Tile& tile, const float* z, int64_t i, int32_t* digits) {
    const Lanes::Float values = Lanes::load(z);
    Lanes::Int digit = Lanes::all(0);
    for (int64_t m = 0; m < tile.most; ++m) {
        Lanes::Float border = Lanes::load(tile.borders.data() + m * tile.size + i);
        Lanes::keep_larger(border, digit, values, Lanes::all(int32_t(m + 1)));
    }
    Lanes::store(digits, digit);
}

// Up to kRows rows, one after the other: count values. digits [tile.size] is scratch.
void quantize(const Tile& tile, const float* z, float* codes, int64_t* ids, int32_t* digits, int64_t count) {
    int64_t i = 0;
    for (; i + Lanes::count <= count; i += Lanes::count) count_below(tile, z + i, i, digits + i);
    if (i < count) {
        float last[Lanes::count] = {};
        std::copy(z + i, z + count, last);
        count_below(tile, last, i, digits + i);
    }
    const float* scale = tile.scale.data();
    for (i = 0; i < count; ++i) codes[i] = (float(digits[i]) - scale[i]) / scale[i];
    for (int64_t row = 0; row < count / tile.width; ++row) {
        int64_t id = 0;
        for (int64_t d = 0; d < tile.width; ++d) id += digits[row * tile.width + d] * tile.place[d];
        ids[row] = id;
    }
}

}  // namespace

// z [rows, width], borders [width, stride] ascending and +inf behind the last, levels [width] of at most most + 1
// -> codes [rows, width], ids [rows]. Returns 0, or 1 if memory ran out.
extern "C" int fsq(const float* z, const float* borders, const int64_t* levels, float* codes, int64_t* ids,
                   int64_t rows, int64_t width, int64_t stride, int64_t most, int64_t threads) try {
    const Tile tile = tile_of(borders, levels, width, stride, most);
    const int64_t slots = std::max<int64_t>(1, std::min(threads, rows / (8 * kRows)));
    std::vector<int32_t> digits(slots * tile.size);
#pragma omp parallel for num_threads(int(slots)) schedule(static)
    for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t share = (rows + slots - 1) / slots, last = std::min(rows, (slot + 1) * share);
        for (int64_t row = slot * share; row < last; row += kRows)
            quantize(tile, z + row * width, codes + row * width, ids + row, digits.data() + slot * tile.size,
                     std::min(kRows, last - row) * width);
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
