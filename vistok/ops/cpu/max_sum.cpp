// Greedy max-sum diversification: the token whose cosine similarities to all picks so far have the smallest sum.
//
// Every pick is multiplied with all tokens once; the sum of products grows in float64 beside each token.
#include "greedy.h"

namespace {

constexpr int kTogether = 4;  // tokens that meet a pick at once

// Products of kCount neighbouring rows with a pick; each is summed in the same order whatever kCount is.
template <int kCount>
void add_products(const float* rows, int64_t stride, const float* pick, double* value) {
    Lanes::Float sum[kCount][kVectors];
    for (int t = 0; t < kCount; ++t)
        for (int v = 0; v < kVectors; ++v) sum[t][v] = Lanes::all(0.0f);
    for (int64_t d = 0; d < stride; d += kStep)
        for (int v = 0; v < kVectors; ++v) {
            const Lanes::Float other = Lanes::load(pick + d + v * Lanes::count);
            for (int t = 0; t < kCount; ++t)
                sum[t][v] = Lanes::fused(Lanes::load(rows + t * stride + d + v * Lanes::count), other, sum[t][v]);
        }
    for (int t = 0; t < kCount; ++t) value[t] -= sum_of_lanes(sum[t][0] + sum[t][1]);
}

// Tokens first..last of an item and, for each, minus the sum of its similarities; -inf once it is taken or unusable.
class Tokens {
    const Points& points_;
    const int64_t first_, count_;
    std::vector<double> value_;

public:
    using Bound = double;
    static double value_of(Bound bound, const Points&) { return bound; }
    static Bound at_first() { return 0; }

    Tokens(const Points& points, int64_t first, int64_t last, int64_t)
        : points_(points), first_(first), count_(last - first), value_(count_, -kInfinity) {
        for (int64_t i = 0; i < count_; ++i)
            if (points.usable[first + i]) value_[i] = 0;
    }

    void take(int64_t token) {
        if (token >= first_ && token < first_ + count_) value_[token - first_] = -kInfinity;
        const float* pick = points_.row(token);
        int64_t i = 0;
        for (; i + kTogether <= count_; i += kTogether)
            add_products<kTogether>(points_.row(first_ + i), points_.stride, pick, value_.data() + i);
        for (; i < count_; ++i) add_products<1>(points_.row(first_ + i), points_.stride, pick, value_.data() + i);
    }

    Candidate<Bound> largest() const {
        Candidate<Bound> best{0, -kInfinity};
        for (int64_t i = 0; i < count_; ++i)
            if (value_[i] > best.bound) best = {first_ + i, value_[i]};
        return best;
    }
};

}  // namespace

// x [items, count, width], valid [items, count], start [items] -> found [items, k], value [items, k] minus the sum of
// similarities, counts [items]. Returns 0, or 1 if memory ran out.
extern "C" int max_sum(const float* x, const uint8_t* valid, const int64_t* start, int64_t* found, float* value,
                       int64_t* counts, int64_t items, int64_t count, int64_t width, int64_t k, int64_t threads) {
    return pick_all<Tokens>({x, valid, start, found, value, counts, items, count, width, k, true}, threads);
}
