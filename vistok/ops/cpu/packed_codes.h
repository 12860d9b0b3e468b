// A codebook as a search reads it: codes in tiles of a few vectors, all codes of a tile side by side.
//
// For l2, codes are moved by a common centre first: far from the origin, scores would cancel.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"
#include "reductions.h"

constexpr int kVectors = 2;                     // vectors of codes in a tile
constexpr int kTile = kVectors * Lanes::count;  // codes in a tile
constexpr float kInfinity = std::numeric_limits<float>::infinity();
enum Metric { kL2 = 0, kCosine = 1, kDot = 2 };

struct Codebook {
    const float* codes;
    int64_t count, width, tiles, padded_width;
    Metric metric;
    std::vector<float> centre;   // [width]
    std::vector<float> packed;   // [tiles][width][kTile]
    std::vector<float> bias;     // [tiles][kTile]: minus half the squared norm, -inf for a code that never matches
    std::vector<char> finite;    // [count]
    double largest_norm = 0;     // of packed codes
};

// Mean code, rounded per axis to a power of two so coarse that whole numbers stay whole; all zero where it would not
// help. The mean over tasks of fixed size does not depend on the number of threads.
inline std::vector<float> centre_of(const Codebook& book, int threads) {
    constexpr int64_t task = 2048;
    const int64_t tasks = (book.count + task - 1) / task, width = book.width;
    std::vector<double> sums(tasks * width), squares(tasks);
    std::vector<int64_t> seen(tasks);
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < tasks; ++t)
        for (int64_t k = t * task; k < std::min(book.count, (t + 1) * task); ++k) {
            if (!book.finite[k]) continue;
            const float* code = book.codes + k * width;
            double* sum = sums.data() + t * width;
            for (int64_t d = 0; d < width; ++d) sum[d] += code[d];
            squares[t] += squared_norm(code, width);
            ++seen[t];
        }
    std::vector<double> mean(width);
    double square = 0, codes = 0, mean_square = 0;
    for (int64_t t = 0; t < tasks; ++t) {
        for (int64_t d = 0; d < width; ++d) mean[d] += sums[t * width + d];
        square += squares[t];
        codes += double(seen[t]);
    }
    std::vector<float> centre(width, 0.0f);
    if (codes == 0) return centre;
    for (auto& value : mean) {
        value /= codes;
        mean_square += value * value;
    }
    if (!(mean_square > square / codes - mean_square)) return centre;
    std::vector<float> spread(width, 0.0f);
    for (int64_t k = 0; k < book.count; ++k)
        if (book.finite[k])
            for (int64_t d = 0; d < width; ++d)
                spread[d] = std::max(spread[d], std::fabs(book.codes[k * width + d] - float(mean[d])));
    const float largest = *std::max_element(spread.begin(), spread.end());
    const double step = std::ldexp(1.0, largest > 0 ? std::ilogb(largest) : -149);
    for (int64_t d = 0; d < width; ++d) centre[d] = float(std::nearbyint(mean[d] / step) * step);
    return centre;
}

inline void pack_code(Codebook& book, int64_t k, float* tile, int lane, float& bias, double& norm) {
    const float* code = book.codes + k * book.width;
    const double length = book.metric == kCosine ? std::sqrt(squared_norm(code, book.width)) : 1.0;
    double square = 0;
    for (int64_t d = 0; d < book.width; ++d) {
        const float value = book.metric == kL2       ? code[d] - book.centre[d]
                            : book.metric == kCosine ? (length > 0 ? float(code[d] / length) : 0.0f)
                                                     : code[d];
        tile[d * kTile + lane] = value;
        square += double(value) * value;
    }
    bias = book.metric == kL2 ? float(-0.5 * square) : 0.0f;
    norm = std::max(norm, std::sqrt(square));
}

inline void pack(Codebook& book, int threads) {
    book.tiles = (book.count + kTile - 1) / kTile;
    book.finite.resize(book.count);
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < book.count; ++k) book.finite[k] = all_finite(book.codes + k * book.width, book.width);
    book.centre = book.metric == kL2 ? centre_of(book, threads) : std::vector<float>(book.width, 0.0f);
    book.packed.assign(book.tiles * book.width * kTile, 0.0f);
    book.bias.assign(book.tiles * kTile, -kInfinity);
    double largest = 0;
#pragma omp parallel for num_threads(threads) reduction(max : largest)
    for (int64_t t = 0; t < book.tiles; ++t)
        for (int lane = 0; lane < kTile && t * kTile + lane < book.count; ++lane)
            if (book.finite[t * kTile + lane])
                pack_code(book, t * kTile + lane, book.packed.data() + t * book.width * kTile, lane,
                          book.bias[t * kTile + lane], largest);
    book.largest_norm = largest;
}
