// Vectors of floats from numbers of 32 or 16 bits, widened without loss.
#pragma once

#include "lanes.h"
#include "numbers.h"

inline Lanes::Float wide(const float* from) { return Lanes::load(from); }

#if defined(__AVX512F__)

inline Lanes::Float wide(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline Lanes::Float wide(const Float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

inline Lanes::Float wide(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline Lanes::Float wide(const Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

#else

template <class Number>
Lanes::Float wide(const Number* from) {
    float values[Lanes::count];
    for (int lane = 0; lane < Lanes::count; ++lane) values[lane] = widen(from[lane]);
    return Lanes::load(values);
}

#endif
