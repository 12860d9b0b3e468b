// Pick tokens of an item one after the other: the largest value is taken, all values change, and so on.
//
// An op says what a value is by a class that holds some tokens of an item: take(token) tells it a pick, largest() names
// its token of largest value and, among equals, of lowest index. Items are spread over threads; where there are fewer
// items than threads, the tokens of an item are. The picks are the same for any number of threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "lanes.h"
#include "reductions.h"

constexpr int kVectors = 2;                         // running sums of one distance or product
constexpr int64_t kStep = kVectors * Lanes::count;  // numbers that it takes at a time
constexpr int64_t kShare = 1 << 20;                 // numbers of an item that are worth a thread of their own
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Tokens of one item, as given or copied: to rows of whole steps, and to unit length if `unit` (zero stays zero).
struct Points {
    const float* given;  // [count, width]
    int64_t count, width;
    bool unit;
    int64_t stride = 0;  // numbers from row to row, a multiple of kStep, zeros beyond width
    const float* rows = nullptr;
    std::vector<float> copied;
    std::vector<char> usable;  // valid and finite

    const float* row(int64_t token) const { return rows + token * stride; }
};

inline void copy_row(Points& points, int64_t token) {
    const float* from = points.given + token * points.width;
    float* to = points.copied.data() + token * points.stride;
    double square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t d = 0; d < points.width; ++d) square += double(from[d]) * from[d];
    const double norm = points.unit && square > 0 ? std::sqrt(square) : 1.0;
    for (int64_t d = 0; d < points.width; ++d) to[d] = float(from[d] / norm);
}

inline void load(Points& points, const uint8_t* valid) {
    const int64_t width = points.width;
    const bool as_given = !points.unit && width % kStep == 0 && width > 0;
    points.stride = as_given ? width : std::max<int64_t>(1, (width + kStep - 1) / kStep) * kStep;
    points.usable.resize(points.count);
    if (!as_given) points.copied.assign(points.count * points.stride, 0.0f);
    points.rows = as_given ? points.given : points.copied.data();
    for (int64_t token = 0; token < points.count; ++token) {
        points.usable[token] = valid[token] && all_finite(points.given + token * width, width);
        if (!as_given && points.usable[token]) copy_row(points, token);
    }
}

// The token to begin with: `start`, or the lowest usable one if that is not usable; count if there is none.
inline int64_t first_pick(const Points& points, int64_t start) {
    if (start >= 0 && start < points.count && points.usable[start]) return start;
    return std::find(points.usable.begin(), points.usable.end(), 1) - points.usable.begin();
}

template <class Bound>
struct Candidate {
    int64_t token;
    Bound bound;
};

// x [items, count, width], valid [items, count], start [items] -> found and value [items, k], counts [items].
struct Batch {
    const float* x;
    const uint8_t* valid;
    const int64_t* start;
    int64_t* found;
    float* value;
    int64_t* counts;
    int64_t items, count, width, k;
    bool unit;
};

// Every thread keeps the values of its tokens and names the largest; all of them see the same winner.
template <class Tokens>
void pick(const Points& points, const Batch& batch, int64_t item, int64_t parts) {
    using Bound = typename Tokens::Bound;
    int64_t* const found = batch.found + item * batch.k;
    float* const value = batch.value + item * batch.k;
    const int64_t begin = first_pick(points, batch.start[item]), share = (points.count + parts - 1) / parts;
    int64_t taken = 0;
    std::vector<Tokens> tokens;
    std::vector<Candidate<Bound>> offers(2 * parts);
    for (int64_t part = 0; part < parts; ++part)
        tokens.emplace_back(points, std::min(points.count, part * share), std::min(points.count, (part + 1) * share),
                            batch.k);
    if (begin < points.count) {
#pragma omp parallel num_threads(int(parts)) if (parts > 1)
        {
            const int64_t slot = omp_get_thread_num(), team = omp_get_num_threads();
            Candidate<Bound> next{begin, Tokens::at_first()};
            for (int64_t step = 0; step < batch.k && next.bound > Bound(-kInfinity); ++step) {
                if (slot == 0) {
                    found[step] = next.token;
                    value[step] = float(Tokens::value_of(next.bound, points));
                    taken = step + 1;
                }
                if (step + 1 == batch.k) break;
                // Two sets of offers in turn, so that one barrier is enough.
                Candidate<Bound>* const offer = offers.data() + step % 2 * parts;
                for (int64_t part = slot; part < parts; part += team) {
                    tokens[part].take(next.token);
                    offer[part] = tokens[part].largest();
                }
#pragma omp barrier
                next = offer[0];
                for (int64_t part = 1; part < parts; ++part)
                    if (offer[part].bound > next.bound) next = offer[part];
            }
        }
    }
    batch.counts[item] = taken;
    for (int64_t step = taken; step < batch.k; ++step) {
        found[step] = taken ? found[taken - 1] : 0;
        value[step] = float(-kInfinity);
    }
}

// Returns 0, or 1 if memory ran out.
template <class Tokens>
int pick_all(const Batch& batch, int64_t threads) {
    const bool by_item = batch.items >= threads;
    const int64_t numbers = batch.count * batch.width;
    const int64_t parts = by_item ? 1 : std::min(threads, 1 + numbers / kShare);
    int failed = 0;
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic) if (by_item && threads > 1) reduction(| : failed)
    for (int64_t item = 0; item < batch.items; ++item) try {
            Points points{batch.x + item * numbers, batch.count, batch.width, batch.unit, 0, nullptr, {}, {}};
            load(points, batch.valid + item * batch.count);
            pick<Tokens>(points, batch, item, parts);
        } catch (const std::bad_alloc&) {
            failed |= 1;
        }
    return failed;
}
