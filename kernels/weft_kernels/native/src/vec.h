// Sixteen floats at a time, by the compiler's vector extensions (GCC, Clang): one AVX-512 register, or
// what the machine has instead.
#pragma once

#include <cstdint>
#include <cstring>

namespace weft {

constexpr int64_t LANES = 16;
typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32x16 __attribute__((vector_size(64)));

// How many vectors of sixteen the registers hold.
#if defined(__AVX512F__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 8;
#endif

inline f32x16 load(const float* p) { return *reinterpret_cast<const f32x16_unaligned*>(p); }
inline void store(float* p, f32x16 v) { *reinterpret_cast<f32x16_unaligned*>(p) = v; }
inline f32x16 splat(float x) { return f32x16{} + x; }

// The first n < 16 floats, and zeros.
inline f32x16 load_some(const float* p, int64_t n) {
    f32x16 v = {};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}
inline void store_some(float* p, f32x16 v, int64_t n) { std::memcpy(p, &v, n * sizeof(float)); }

// Keeps a value in a register where the compiler would load it again for each use.
inline void keep(f32x16& v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#else
    (void)v;
#endif
}

inline float sum(f32x16 v) {
    typedef float f32x8 __attribute__((vector_size(32)));
    typedef float f32x4 __attribute__((vector_size(16)));
    const f32x8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    const f32x4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

// e^x in float32, within 2 units in the last place; NaN stays NaN. Cephes' method: 2^n times a polynomial
// on [-ln2 / 2, ln2 / 2].
inline f32x16 exp(f32x16 x) {
    const f32x16 low = splat(-87.33654f), high = splat(88.72283f);
    f32x16 y = x < low ? low : x;
    y = y > high ? high : y;
    const f32x16 shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const f32x16 n = (y * 1.44269504f + shifter) - shifter;
    const f32x16 r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // 2^n in two factors, since 2^128 has no float
    const i32x16 whole = __builtin_convertvector(n, i32x16), half = whole >> 1;
    const i32x16 first = (half + 127) << 23, second = (whole - half + 127) << 23;
    const f32x16 result = p * reinterpret_cast<f32x16>(first) * reinterpret_cast<f32x16>(second);
    return x < low ? splat(0.0f) : (x > high ? splat(__builtin_inff()) : result);
}

}  // namespace weft
