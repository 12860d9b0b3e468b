// Vectors of floats and of 32-bit integers, as wide as the processor that this is compiled for allows.
//
// An op writes its tile once in terms of Lanes. Multiply-add is fused where the processor can, and only where
// fused() is written: the compiler must not contract anything by itself.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)

struct Lanes {
    static constexpr int count = 16;
    static constexpr int registers = 32;
    using Float = __m512;
    using Int = __m512i;
    static Float all(float value) { return _mm512_set1_ps(value); }
    static Int all(int32_t value) { return _mm512_set1_epi32(value); }
    static Float load(const float* from) { return _mm512_loadu_ps(from); }
    static Int load(const int32_t* from) { return _mm512_loadu_si512(from); }
    static void store(float* to, Float value) { _mm512_storeu_ps(to, value); }
    static void store(int32_t* to, Int value) { _mm512_storeu_si512(to, value); }
    static Float fused(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }
    static Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }
    // Where value > best (never for NaN): best = value, place = here.
    static void keep_larger(Float& best, Int& place, Float value, Int here) {
        const __mmask16 wins = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, wins, value);
        place = _mm512_mask_mov_epi32(place, wins, here);
    }
};

#elif defined(__AVX2__) && defined(__FMA__)

struct Lanes {
    static constexpr int count = 8;
    static constexpr int registers = 16;
    using Float = __m256;
    using Int = __m256i;
    static Float all(float value) { return _mm256_set1_ps(value); }
    static Int all(int32_t value) { return _mm256_set1_epi32(value); }
    static Float load(const float* from) { return _mm256_loadu_ps(from); }
    static Int load(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static void store(float* to, Float value) { _mm256_storeu_ps(to, value); }
    static void store(int32_t* to, Int value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }
    static Float fused(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static Float smaller(Float a, Float b) { return _mm256_min_ps(a, b); }
    static Float larger(Float a, Float b) { return _mm256_max_ps(a, b); }
    static void keep_larger(Float& best, Int& place, Float value, Int here) {
        const __m256 wins = _mm256_cmp_ps(value, best, _CMP_GT_OQ);
        best = _mm256_blendv_ps(best, value, wins);
        place = _mm256_castps_si256(
            _mm256_blendv_ps(_mm256_castsi256_ps(place), _mm256_castsi256_ps(here), wins));
    }
};

#else

struct Lanes {
    static constexpr int count = 4;
    static constexpr int registers = 16;
    typedef float Float __attribute__((vector_size(16)));
    typedef int32_t Int __attribute__((vector_size(16)));
    static Float all(float value) { return Float{value, value, value, value}; }
    static Int all(int32_t value) { return Int{value, value, value, value}; }
    static Float load(const float* from) { return Float{from[0], from[1], from[2], from[3]}; }
    static Int load(const int32_t* from) { return Int{from[0], from[1], from[2], from[3]}; }
    static void store(float* to, Float value) {
        for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
    }
    static void store(int32_t* to, Int value) {
        for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
    }
    static Float fused(Float a, Float b, Float c) { return a * b + c; }
    static Float smaller(Float a, Float b) { return a < b ? a : b; }
    static Float larger(Float a, Float b) { return a > b ? a : b; }
    static void keep_larger(Float& best, Int& place, Float value, Int here) {
        const Int wins = value > best;
        best = wins ? value : best;
        place = wins ? here : place;
    }
};

#endif
