// Numbers as tensors hold them, and operations on single floats that vectorise inside loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// How Python names the type of the numbers behind a pointer.
enum Element { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Widened to float without loss.
inline float widen(float value) { return value; }

inline float widen(BFloat16 value) { return as_float(uint32_t(value.bits) << 16); }

inline float widen(Float16 value) {
    const uint32_t magnitude = (value.bits & 0x7fffu) << 13, sign = (value.bits & 0x8000u) << 16;
    const float normal = as_float(magnitude + (112u << 23));
    // Subnormal: read as 2^-14 (1 + fraction), so that no subnormal float appears, which may be flushed to zero.
    const float subnormal = as_float(magnitude + (113u << 23)) - as_float(113u << 23);
    const float special = as_float(magnitude | 0x7f800000u);
    const float positive = magnitude >= 0x0f800000u ? special : magnitude < 0x00800000u ? subnormal : normal;
    return as_float(as_bits(positive) | sign);
}

// a b + c, rounded once where the processor can; elsewhere fmaf would be a slow call.
inline float fused(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
    return std::fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
