// The code of largest score for every row: score = x.c - |c|^2 / 2 (l2), x.c / |c| (cosine) or x.c (dot).
//
// Codes are packed in tiles of a few vectors, all codes of a tile side by side. A group of rows meets tile after tile;
// every lane remembers its best score and the tile that had it, so that no N x K matrix and no reduction over codes
// appears before the last tile. For l2, codes and rows are moved by a common centre first: far from the origin the
// formula would cancel. Among equal scores the lowest index wins; rows and codes that are not finite never match.
//
// A certified search bounds the rounding of its float32 scores. A row whose lead over the second best is larger than
// that is proved; for any other row, all codes within the bound are compared in float64, in an order of operations
// that every back end shares.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "packed_codes.h"

namespace {

constexpr int kRows = Lanes::registers / 4;  // rows that meet a tile together: half the registers are sums
constexpr int64_t kChunk = 128;              // rows of one task
constexpr int64_t kBlockBytes = 192 * 1024;  // tiles that a chunk meets before it goes on: they stay in cache

// What every lane of a row remembers.
struct Best {
    float score[kTile], second[kTile];
    int32_t tile[kTile];
};

// kRows rows meet tiles first..last of the codebook.
template <bool kSecond>
void meet(const Codebook& book, const float* rows, int64_t first, int64_t last, Best* best) {
    Lanes::Float score[kRows][kVectors], second[kRows][kVectors];
    Lanes::Int place[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) {
            score[r][v] = Lanes::load(best[r].score + v * Lanes::count);
            place[r][v] = Lanes::load(best[r].tile + v * Lanes::count);
            if (kSecond) second[r][v] = Lanes::load(best[r].second + v * Lanes::count);
        }
    for (int64_t t = first; t < last; ++t) {
        const float* tile = book.packed.data() + t * book.width * kTile;
        Lanes::Float sum[kRows][kVectors];
        for (int v = 0; v < kVectors; ++v) {
            const Lanes::Float bias = Lanes::load(book.bias.data() + t * kTile + v * Lanes::count);
            for (int r = 0; r < kRows; ++r) sum[r][v] = bias;
        }
        for (int64_t d = 0; d < book.width; ++d) {
            Lanes::Float code[kVectors];
            for (int v = 0; v < kVectors; ++v) code[v] = Lanes::load(tile + d * kTile + v * Lanes::count);
            for (int r = 0; r < kRows; ++r) {
                const Lanes::Float x = Lanes::all(rows[r * book.width + d]);
                for (int v = 0; v < kVectors; ++v) sum[r][v] = Lanes::fused(x, code[v], sum[r][v]);
            }
        }
        const Lanes::Int here = Lanes::all(int32_t(t));
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v) {
                if (kSecond)
                    second[r][v] = Lanes::larger(second[r][v], Lanes::smaller(score[r][v], sum[r][v]));
                Lanes::keep_larger(score[r][v], place[r][v], sum[r][v], here);
            }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) {
            Lanes::store(best[r].score + v * Lanes::count, score[r][v]);
            Lanes::store(best[r].tile + v * Lanes::count, place[r][v]);
            if (kSecond) Lanes::store(best[r].second + v * Lanes::count, second[r][v]);
        }
}

struct Winner {
    int64_t index;
    float score, second;
};

Winner winner_of(const Best& best) {
    Winner found{0, -kInfinity, -kInfinity};
    for (int lane = 0; lane < kTile; ++lane) {
        const int64_t index = int64_t(best.tile[lane]) * kTile + lane;
        const float score = best.score[lane];
        if (score > found.score || (score == found.score && score > -kInfinity && index < found.index)) {
            found.second = std::max(found.second, found.score);
            found.index = index;
            found.score = score;
        } else {
            found.second = std::max(found.second, score);
        }
        found.second = std::max(found.second, best.second[lane]);
    }
    return found;
}

// The float64 score by which certified results are defined; larger is nearer. scratch: 2 * padded_width doubles.
double exact_score(const Codebook& book, const float* x, int64_t k, double* scratch) {
    const float* code = book.codes + k * book.width;
    double *terms = scratch, *squares = scratch + book.padded_width;
    std::fill(scratch, scratch + 2 * book.padded_width, 0.0);
    for (int64_t d = 0; d < book.width; ++d) {
        const double a = x[d], c = code[d], difference = a - c;
        terms[d] = book.metric == kL2 ? difference * difference : a * c;
        squares[d] = c * c;
    }
    const double sum = sum_by_halves(terms, book.padded_width);
    if (book.metric == kL2) return -sum;
    if (book.metric == kDot) return sum;
    const double square = sum_by_halves(squares, book.padded_width);
    return square > 0 ? sum / std::sqrt(square) : 0.0;
}

// More than a float32 score can be away from the exact one plus what float64 itself rounds: docstring of the op.
double bound(const Codebook& book, double norm) {
    const double largest = book.largest_norm * (1 + 1e-6), width = double(book.width);
    if (norm * largest + largest * largest > 1e37) return kInfinity;  // float32 may have overflowed
    const double half = book.metric == kL2 ? 0.5 * largest * largest : 0.0;
    const double rounding = 1.02 * (width + 8) * std::ldexp(1.0, -24) * (norm * largest + half);
    const double underflow = (width + 8) * std::ldexp(1.0, -125) * (1 + norm + largest);
    const double reach = book.metric == kL2 ? (norm + largest) * (norm + largest) : norm * largest;
    return rounding + underflow + (width + 8) * std::ldexp(1.0, -51) * reach;
}

// Nearest code by float64, among codes whose float32 score (of the centred row) reaches `least`; all if it is NaN.
int64_t rerank(const Codebook& book, const float* x, const float* centred, double least, std::vector<double>& scratch) {
    int64_t index = 0;
    double best = -std::numeric_limits<double>::infinity();
    for (int64_t t = 0; t < book.tiles; ++t) {
        Lanes::Float sum[kVectors];
        float score[kTile];
        const float* tile = book.packed.data() + t * book.width * kTile;
        for (int v = 0; v < kVectors; ++v) sum[v] = Lanes::load(book.bias.data() + t * kTile + v * Lanes::count);
        for (int64_t d = 0; d < book.width; ++d)
            for (int v = 0; v < kVectors; ++v)
                sum[v] = Lanes::fused(Lanes::all(centred[d]), Lanes::load(tile + d * kTile + v * Lanes::count), sum[v]);
        for (int v = 0; v < kVectors; ++v) Lanes::store(score + v * Lanes::count, sum[v]);
        for (int lane = 0; lane < kTile; ++lane) {
            const int64_t k = t * kTile + lane;
            if (score[lane] < least || k >= book.count || !book.finite[k]) continue;
            const double exact = exact_score(book, x, k, scratch.data());
            if (exact > best) best = exact, index = k;
        }
    }
    return index;
}

struct Task {
    std::vector<float> rows;    // [kChunk][width], centred
    std::vector<char> finite;   // [kChunk]
    std::vector<Best> best;     // [kChunk]
    std::vector<double> scratch;
    explicit Task(const Codebook& book)
        : rows(kChunk * book.width), finite(kChunk), best(kChunk), scratch(2 * book.padded_width) {}
};

void load_rows(const Codebook& book, const float* x, int64_t count, Task& task) {
    std::fill(task.rows.begin(), task.rows.end(), 0.0f);
    for (int64_t r = 0; r < count; ++r) {
        const float* row = x + r * book.width;
        task.finite[r] = all_finite(row, book.width);
        if (task.finite[r])
            for (int64_t d = 0; d < book.width; ++d) task.rows[r * book.width + d] = row[d] - book.centre[d];
    }
    for (auto& best : task.best) {
        std::fill(best.score, best.score + kTile, -kInfinity);
        std::fill(best.second, best.second + kTile, -kInfinity);
        std::fill(best.tile, best.tile + kTile, 0);
    }
}

template <bool kCertified>
void search(const Codebook& book, const float* x, int64_t count, Task& task, int64_t* found) {
    load_rows(book, x, count, task);
    const int64_t block = std::max<int64_t>(1, kBlockBytes / (book.width * kTile * 4 + 1));
    for (int64_t first = 0; first < book.tiles; first += block)
        for (int64_t r = 0; r < count; r += kRows)
            meet<kCertified>(book, task.rows.data() + r * book.width, first, std::min(book.tiles, first + block),
                             task.best.data() + r);
    for (int64_t r = 0; r < count; ++r) {
        const Winner winner = winner_of(task.best[r]);
        found[r] = task.finite[r] && winner.score > -kInfinity ? winner.index : 0;
        if (!kCertified || !task.finite[r]) continue;
        const float* centred = task.rows.data() + r * book.width;
        const double margin = 2 * bound(book, std::sqrt(squared_norm(centred, book.width)) * (1 + 1e-6));
        const double score = winner.score, lead = score - winner.second;
        if (!(lead > margin)) found[r] = rerank(book, x + r * book.width, centred, score - margin, task.scratch);
    }
}

}  // namespace

// x [rows, width], codes [count, width] -> found [rows]. Returns 0, or 1 if memory ran out.
extern "C" int nearest_code(const float* x, const float* codes, int64_t* found, int64_t rows, int64_t count,
                            int64_t width, int64_t metric, int64_t certified, int64_t threads) try {
    Codebook book{codes, count, width, 0, 1, Metric(metric), {}, {}, {}, {}};
    while (book.padded_width < width) book.padded_width *= 2;
    pack(book, int(threads));
    const int64_t tasks = (rows + kChunk - 1) / kChunk;
    std::vector<Task> own(std::max<int64_t>(1, std::min(threads, tasks)), Task(book));
#pragma omp parallel for num_threads(int(own.size())) schedule(static)
    for (int64_t slot = 0; slot < int64_t(own.size()); ++slot)
        for (int64_t t = slot; t < tasks; t += int64_t(own.size())) {
            const int64_t first = t * kChunk, size = std::min(kChunk, rows - first);
            (certified ? search<true> : search<false>)(book, x + first * width, size, own[slot], found + first);
        }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
