// What a vector of numbers adds up to, always in the same order.
#pragma once

#include <cstdint>

#include "lanes.h"

inline float sum_of_lanes(Lanes::Float vector) {
    float lanes[Lanes::count];
    Lanes::store(lanes, vector);
    for (int half = Lanes::count / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// Sum of values[0..width), width a power of two, by adding the upper half to the lower one; overwrites values.
inline double sum_by_halves(double* values, int64_t width) {
    for (; width > 1; width /= 2)
        for (int64_t i = 0; i < width / 2; ++i) values[i] += values[i + width / 2];
    return values[0];
}

inline bool all_finite(const float* values, int64_t count) {
    float probe = 0;
#pragma omp simd reduction(+ : probe)
    for (int64_t i = 0; i < count; ++i) probe += values[i] * 0.0f;
    return probe == 0;
}

inline double squared_norm(const float* values, int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += double(values[i]) * values[i];
    return sum;
}
