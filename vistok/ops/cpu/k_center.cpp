// Greedy k-center: the token farthest from all picks so far, again and again; ties go to the lowest index.
//
// The distance of a token to its nearest pick only shrinks as picks are added, so the one that was computed against
// the first few picks bounds it from above. Only the token with the largest bound is compared with the picks that it
// has not met; when it has met all of them and is still the largest, it is the next pick. Most tokens fall below the
// largest bound early and are never looked at again: the picks are those of the full sweep, to the bit, for a fraction
// of its distances. A distance is left unfinished once its partial sum shows that it is not the smallest.
//
// A certified search puts an interval around float32 distances, and computes the few that it leaves open in float64, in
// an order of operations that every back end shares.
#include "greedy.h"

namespace {

constexpr int64_t kLook = 256;  // numbers after which a partial sum is looked at
constexpr int kTogether = 4;    // picks that a token meets at once
constexpr int64_t kBlock = 64;  // tokens whose largest bound is kept
constexpr double kUnit = 1.0 / (1 << 24);

// Squared distances of x to kCount picks; width is a multiple of kStep. With kLooks, false as soon as every partial sum
// has reached `enough`: the sums only grow, so no distance can be below it.
template <int kCount, bool kLooks>
bool distances(const float* x, const float* const* picks, int64_t width, float enough, float* out) {
    Lanes::Float sum[kCount][kVectors];
    for (int p = 0; p < kCount; ++p)
        for (int v = 0; v < kVectors; ++v) sum[p][v] = Lanes::all(0.0f);
    for (int64_t begin = 0, end; begin < width; begin = end) {
        end = kLooks ? std::min(width, begin + kLook) : width;
        for (int64_t d = begin; d < end; d += kStep)
            for (int v = 0; v < kVectors; ++v) {
                const Lanes::Float value = Lanes::load(x + d + v * Lanes::count);
                for (int p = 0; p < kCount; ++p) {
                    const Lanes::Float difference = value - Lanes::load(picks[p] + d + v * Lanes::count);
                    sum[p][v] = Lanes::fused(difference, difference, sum[p][v]);
                }
            }
        bool open = false;
        for (int p = 0; p < kCount; ++p) {
            out[p] = sum_of_lanes(sum[p][0] + sum[p][1]);
            open |= out[p] < enough;
        }
        if (kLooks && !open && end < width) return false;
    }
    return true;
}

double norm_of(const float* values, int64_t width, std::vector<double>& scratch) {
    std::fill(scratch.begin(), scratch.end(), 0.0);
    for (int64_t d = 0; d < width; ++d) scratch[d] = double(values[d]) * values[d];
    return std::sqrt(sum_by_halves(scratch.data(), int64_t(scratch.size())));
}

// How far the float64 distance by which certified picks are defined can be from a float32 one: rounding of D + 2
// operations on terms of one sign, underflow, and for cosine the rounding of both unit vectors.
struct Margin {
    double relative, absolute, moved;
    Margin(int64_t width, bool unit)
        : relative(1.02 * double(width + 8) * kUnit),
          absolute(double(width + 8) * std::ldexp(1.0, -140)),
          moved(unit ? 4 * kUnit : 0.0) {}
    double above(float distance) const {
        const double root = std::sqrt(distance * (1 + relative) + absolute) + moved;
        return root * root * (1 + 1e-14);
    }
    double below(float distance) const {
        const double finite = std::min(double(distance), double(std::numeric_limits<float>::max()));
        const double root = std::sqrt(std::max(0.0, finite * (1 - relative) - absolute)) - moved;
        return root > 0 ? root * root * (1 - 1e-14) : 0.0;
    }
};

// Tokens first..last of an item with what is known about each: a bound, and how many of the picks it has met.
// Bound is float where float32 distances decide, double where float64 ones do.
template <class Number>
class Tokens {
public:
    using Bound = Number;

private:
    static constexpr bool kCertified = sizeof(Bound) == 8;
    const Points& points_;
    const int64_t first_, count_, blocks_;
    const Margin margin_;
    std::vector<int64_t> picks_;
    std::vector<Bound> bound_, block_bound_;
    std::vector<float> nearest_;          // over the picks met, in float32; certified only
    std::vector<int32_t> met_, met_exactly_;
    std::vector<double> terms_;
    int64_t looks_ = 0, tried_ = 0, cut_ = 0;

public:
    static double value_of(Bound bound, const Points& points) { return points.unit ? 0.5 * bound : bound; }
    static Bound at_first() { return Bound(kInfinity); }

    Tokens(const Points& points, int64_t first, int64_t last, int64_t picks)
        : points_(points), first_(first), count_(std::max<int64_t>(0, last - first)),
          blocks_(std::max<int64_t>(1, (count_ + kBlock - 1) / kBlock)), margin_(points.width, points.unit),
          bound_(blocks_ * kBlock, Bound(-kInfinity)), block_bound_(blocks_), met_(count_, 0) {
        picks_.reserve(picks);
        for (int64_t i = 0; i < count_; ++i)
            if (points.usable[first + i]) bound_[i] = Bound(kInfinity);
        for (int64_t block = 0; block < blocks_; ++block) update_block(block);
        if (!kCertified) return;
        nearest_.assign(count_, float(kInfinity));
        met_exactly_.assign(count_, 0);
        int64_t padded = 1;
        while (padded < points.width) padded *= 2;
        terms_.resize(padded);
    }

    void take(int64_t token) {
        picks_.push_back(token);
        if (token < first_ || token >= first_ + count_) return;
        bound_[token - first_] = Bound(-kInfinity);
        update_block((token - first_) / kBlock);
    }

    // The token farthest from all picks; -inf if none is left.
    Candidate<Bound> largest() {
        const int64_t picked = int64_t(picks_.size());
        for (;;) {
            const int64_t i = largest_bound();
            if (bound_[i] == Bound(-kInfinity)) return {0, bound_[i]};
            if (met_[i] < picked)
                meet(i, picked);
            else if (kCertified && met_exactly_[i] < picked)
                meet_exactly(i, picked);
            else
                return {first_ + i, bound_[i]};
            update_block(i / kBlock);
        }
    }

private:
    void update_block(int64_t block) {
        const Bound* bound = bound_.data() + block * kBlock;
        Bound most[8];
        for (int lane = 0; lane < 8; ++lane) most[lane] = bound[lane];
        for (int64_t i = 8; i < kBlock; i += 8)
            for (int lane = 0; lane < 8; ++lane) most[lane] = most[lane] < bound[i + lane] ? bound[i + lane] : most[lane];
        block_bound_[block] = *std::max_element(most, most + 8);
    }

    int64_t largest_bound() const {
        const int64_t block = std::max_element(block_bound_.begin(), block_bound_.end()) - block_bound_.begin();
        int64_t i = block * kBlock;
        while (bound_[i] != block_bound_[block]) ++i;
        return i;
    }

    // Whether partial sums are worth a look: as long as most of the looks of late, and one call in 32, cut a distance.
    bool look() {
        if (points_.stride <= kLook) return false;
        if (tried_ == 64) tried_ /= 2, cut_ /= 2;
        return 2 * cut_ > tried_ || looks_++ % 32 == 0;
    }

    template <int kCount>
    void meet_some(const float* row, int64_t pick, float& nearest) {
        const float* picks[kCount];
        float found[kCount];
        for (int p = 0; p < kCount; ++p) picks[p] = points_.row(picks_[pick + p]);
        if (look()) {
            const bool whole = distances<kCount, true>(row, picks, points_.stride, nearest, found);
            ++tried_;
            cut_ += !whole;
            if (!whole) return;
        } else {
            distances<kCount, false>(row, picks, points_.stride, nearest, found);
        }
        for (int p = 0; p < kCount; ++p) nearest = std::min(nearest, found[p]);
    }

    // Meet picks until all are met or one is nearer than those before: then another token may have the largest bound.
    void meet(int64_t i, int64_t picked) {
        const float* row = points_.row(first_ + i);
        float nearest = kCertified ? nearest_[i] : float(bound_[i]);
        const float before = nearest;
        int64_t pick = met_[i];
        while (pick < picked && nearest == before) {
            const int together = picked - pick >= kTogether ? kTogether : 1;
            if (together == 1)
                meet_some<1>(row, pick, nearest);
            else
                meet_some<kTogether>(row, pick, nearest);
            pick += together;
        }
        met_[i] = int32_t(pick);
        if (kCertified) nearest_[i] = nearest;
        bound_[i] = kCertified ? std::min(bound_[i], Bound(margin_.above(nearest))) : Bound(nearest);
    }

    // The same in float64, for those picks that may be the nearest by float32.
    void meet_exactly(int64_t i, int64_t picked) {
        const float* row = points_.row(first_ + i);
        const double limit = margin_.above(nearest_[i]);
        double exact = met_exactly_[i] ? double(bound_[i]) : kInfinity;
        for (int64_t pick = met_exactly_[i]; pick < picked; ++pick) {
            const float* other = points_.row(picks_[pick]);
            float found;
            distances<1, false>(row, &other, points_.stride, 0.0f, &found);
            if (margin_.below(found) <= limit) exact = std::min(exact, exact_distance(first_ + i, picks_[pick]));
        }
        met_exactly_[i] = int32_t(picked);
        bound_[i] = Bound(exact);
    }

    double exact_distance(int64_t token, int64_t pick) {
        const float *x = points_.given + token * points_.width, *y = points_.given + pick * points_.width;
        double x_norm = 1, y_norm = 1;
        if (points_.unit) {
            x_norm = norm_of(x, points_.width, terms_);
            y_norm = norm_of(y, points_.width, terms_);
        }
        if (x_norm == 0) x_norm = 1;
        if (y_norm == 0) y_norm = 1;
        std::fill(terms_.begin(), terms_.end(), 0.0);
        for (int64_t d = 0; d < points_.width; ++d) {
            const double difference = x[d] / x_norm - y[d] / y_norm;
            terms_[d] = difference * difference;
        }
        return sum_by_halves(terms_.data(), int64_t(terms_.size()));
    }
};

}  // namespace

// x [items, count, width], valid [items, count], start [items] -> found [items, k], radius [items, k], counts [items].
// Returns 0, or 1 if memory ran out.
extern "C" int k_center(const float* x, const uint8_t* valid, const int64_t* start, int64_t* found, float* radius,
                        int64_t* counts, int64_t items, int64_t count, int64_t width, int64_t k, int64_t metric,
                        int64_t certified, int64_t threads) {
    const Batch batch{x, valid, start, found, radius, counts, items, count, width, k, metric == 1};
    return certified ? pick_all<Tokens<double>>(batch, threads) : pick_all<Tokens<float>>(batch, threads);
}
