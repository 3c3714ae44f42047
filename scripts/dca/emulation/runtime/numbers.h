// PTX's types and arithmetic of one lane, as its instruction set defines them: rounding, subnormals, NaN.
//
// Source: the chapters "Instruction Set" and "Floating Point" of NVIDIA's PTX ISA 8.x. Where it leaves a value open, the
// comment says what is computed. Approximate instructions are computed to about half a unit in the last place of f32,
// which is more exact than their documented errors.
#ifndef DCA_EMULATION_NUMBERS_H
#define DCA_EMULATION_NUMBERS_H

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace dca {

using u8 = uint8_t;
using s8 = int8_t;
using u16 = uint16_t;
using s16 = int16_t;
using u32 = uint32_t;
using s32 = int32_t;
using u64 = uint64_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct f16x2 { u32 bits; };
struct bf16x2 { u32 bits; };
struct e4m3x2 { u16 bits; };
struct e5m2x2 { u16 bits; };

template <class To, class From> inline To cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <size_t bytes> struct BitsOf;
template <> struct BitsOf<1> { using type = u8; };
template <> struct BitsOf<2> { using type = u16; };
template <> struct BitsOf<4> { using type = u32; };
template <> struct BitsOf<8> { using type = u64; };
template <class T> using Bits = typename BitsOf<sizeof(T)>::type;

// What a register's bits are as a value of T: the low ones. What is written back is extended by the type's sign.
template <class T, class R> inline T from_register(R bits) { return cast<T>(static_cast<Bits<T>>(bits)); }
template <class R, class T> inline R to_register(T value) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<R>(value);
  else
    return static_cast<R>(cast<Bits<T>>(value));
}

// Rounding: to nearest even, to zero, down, up; and to nearest, ties away.
enum Rounding { rn = 0, rz = 1, rm = 2, rp = 3, rna = 4 };
inline int host_rounding(Rounding rounding) {
  return rounding == rz ? FE_TOWARDZERO : rounding == rm ? FE_DOWNWARD : rounding == rp ? FE_UPWARD : FE_TONEAREST;
}

constexpr u32 NAN_F32 = 0x7fffffffu;
constexpr u16 NAN_16 = 0x7fffu;

inline bool is_nan(f32 x) { return x != x; }
inline bool is_nan(f64 x) { return x != x; }
// A NaN that an instruction computes is this one.
inline f32 canonical(f32 x) { return x != x ? cast<f32>(NAN_F32) : x; }
inline f64 canonical(f64 x) { return x; }
inline f32 flushed(f32 x) {
  u32 bits = cast<u32>(x);
  return cast<f32>((bits & 0x7f800000u) ? bits : bits & 0x80000000u);
}
template <bool ftz> inline f32 flush(f32 x) { return ftz ? flushed(x) : x; }
// To [0, 1]; NaN becomes 0.
template <class F> inline F saturated(F x) { return x > F(0) ? (x < F(1) ? x : F(1)) : F(0); }

struct Format { int exponent, mantissa; u32 largest, nan; bool infinity; };
constexpr Format F16{5, 10, 0x7bff, 0x7fff, true}, BF16{8, 7, 0x7f7f, 0x7fff, true};
constexpr Format E4M3{4, 3, 0x7e, 0x7f, false}, E5M2{5, 2, 0x7b, 0x7f, true};

// The bits of a value in a smaller format, rounded once. `finite` clamps to the largest finite value.
inline u32 narrowed(f64 value, const Format &format, Rounding rounding, bool finite = false) {
  u64 bits = cast<u64>(value);
  u32 sign = static_cast<u32>(bits >> 63);
  int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  u64 significand = bits & 0xfffffffffffffull;
  u32 place = sign << (format.exponent + format.mantissa);
  u32 infinite = finite || !format.infinity ? format.largest : format.largest + 1;
  if (exponent == 1024) return significand ? format.nan : place | infinite;
  if (exponent == -1023)
    exponent = -1022;
  else
    significand |= 1ull << 52;
  int bias = (1 << (format.exponent - 1)) - 1, lowest = 1 - bias, shift = 52 - format.mantissa;
  bool subnormal = exponent < lowest;
  if (subnormal) shift += lowest - exponent;
  if (shift > 60) shift = 60;
  u64 kept = significand >> shift, rest = significand & ((1ull << shift) - 1), half = 1ull << (shift - 1);
  bool up = rounding == rn    ? rest > half || (rest == half && (kept & 1))
            : rounding == rna ? rest >= half
            : rounding == rm  ? sign && rest
            : rounding == rp  ? !sign && rest
                              : false;
  u64 result = kept + up;
  if (!subnormal) result += static_cast<u64>(exponent + bias - 1) << format.mantissa;
  if (result > format.largest) {
    bool away = rounding == rn || rounding == rna || (rounding == rm && sign) || (rounding == rp && !sign);
    return place | (away ? infinite : format.largest);
  }
  return place | static_cast<u32>(result);
}

inline f32 widened(u32 bits, const Format &format) {
  u32 sign = bits >> (format.exponent + format.mantissa) & 1, magnitude = bits & ((1u << (format.exponent + format.mantissa)) - 1);
  if (magnitude > format.largest && (!format.infinity || magnitude != format.largest + 1)) return cast<f32>(NAN_F32);
  f32 value;
  if (magnitude > format.largest)
    value = std::numeric_limits<f32>::infinity();
  else {
    int exponent = static_cast<int>(magnitude >> format.mantissa), bias = (1 << (format.exponent - 1)) - 1;
    u32 mantissa = magnitude & ((1u << format.mantissa) - 1);
    value = exponent ? std::ldexp(static_cast<f32>(mantissa | 1u << format.mantissa), exponent - bias - format.mantissa)
                     : std::ldexp(static_cast<f32>(mantissa), 1 - bias - format.mantissa);
  }
  return sign ? -value : value;
}

// These two go through selects alone, so that a loop over lanes is vectorised.
inline f32 wide(f16 h) {
  u32 magnitude = h.bits & 0x7fffu, sign = static_cast<u32>(h.bits & 0x8000u) << 16;
  // Multiplying by 2^112 rebiases normal and subnormal numbers alike.
  u32 finite = cast<u32>(cast<f32>(magnitude << 13) * 5192296858534827628530496329220096.0f);
  u32 special = magnitude > 0x7c00u ? NAN_F32 : 0x7f800000u;
  return cast<f32>((magnitude >= 0x7c00u ? special : finite) | sign);
}
inline f32 wide(bf16 h) { return canonical(cast<f32>(static_cast<u32>(h.bits) << 16)); }
// The same without a canonical NaN: cvt and matrix products keep the bits.
inline f32 wide_bits(bf16 h) { return cast<f32>(static_cast<u32>(h.bits) << 16); }
inline f32 wide_bits(f16 h) { return wide(h); }

template <class H> inline H narrow(f32 x);
template <> inline bf16 narrow<bf16>(f32 x) {
  u32 bits = cast<u32>(x);
  u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return {static_cast<u16>((bits & 0x7fffffffu) > 0x7f800000u ? NAN_16 : rounded)};
}
template <> inline f16 narrow<f16>(f32 x) {
  u32 bits = cast<u32>(x), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  u32 normal = (magnitude + 0xfffu + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  // Adding a half puts the bits of a subnormal result at the low end, rounded to nearest even.
  u32 subnormal = cast<u32>(cast<f32>(magnitude) + 0.5f) - 0x3f000000u;
  u32 finite = magnitude < 0x38800000u ? subnormal : normal;
  u32 result = magnitude > 0x7f800000u ? NAN_16 : (magnitude >= 0x47800000u ? 0x7c00u : finite) | sign;
  return {static_cast<u16>(result)};
}
template <class H> inline const Format &format_of();
template <> inline const Format &format_of<f16>() { return F16; }
template <> inline const Format &format_of<bf16>() { return BF16; }
template <class H> inline H flushed16(H h) {
  constexpr u16 exponent = std::is_same_v<H, f16> ? 0x7c00 : 0x7f80;
  return {static_cast<u16>(h.bits & exponent ? h.bits : h.bits & 0x8000)};
}
// A sum of two doubles whose last bit says whether it is exact, so that a second rounding gives what one would have.
inline f64 odd_sum(f64 a, f64 b) {
  f64 sum = a + b;
  if (!std::isfinite(sum)) return sum;
  f64 tail = sum - a, error = (a - (sum - tail)) + (b - tail);
  u64 bits = cast<u64>(sum);
  if (error == 0 || (bits & 1)) return sum;
  return cast<f64>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}
template <class H> inline H fused(H a, H b, H c) {
  f64 product = static_cast<f64>(wide(a)) * wide(b);
  return {static_cast<u16>(narrowed(odd_sum(product, wide(c)), format_of<H>(), rn))};
}

// Structures named after instructions: `of` computes one lane.
template <class T> struct Unsigned { using type = std::make_unsigned_t<T>; };
template <class T> struct Add { static T of(T a, T b) { using U = std::make_unsigned_t<T>; return T(U(a) + U(b)); } };
template <class T> struct Sub { static T of(T a, T b) { using U = std::make_unsigned_t<T>; return T(U(a) - U(b)); } };
// The product of 16-bit numbers would overflow an int.
template <class T> inline T low_product(T a, T b) {
  return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
}
template <class T> struct Twice;
template <> struct Twice<u16> { using type = u32; };
template <> struct Twice<s16> { using type = s32; };
template <> struct Twice<u32> { using type = u64; };
template <> struct Twice<s32> { using type = s64; };
template <> struct Twice<u64> { using type = unsigned __int128; };
template <> struct Twice<s64> { using type = __int128; };
template <class T> inline T high_product(T a, T b) {
  using W = typename Twice<T>::type;
  return static_cast<T>((W(a) * W(b)) >> (8 * sizeof(T)));
}
template <class T> struct MulLo { static T of(T a, T b) { return low_product(a, b); } };
template <class T> struct MulHi { static T of(T a, T b) { return high_product(a, b); } };
template <class T> struct MulWide {
  using W = typename Twice<T>::type;
  static W of(T a, T b) { return W(a) * W(b); }
};
template <class T> struct MadLo { static T of(T a, T b, T c) { return Add<T>::of(low_product(a, b), c); } };
template <class T> struct MadHi { static T of(T a, T b, T c) { return Add<T>::of(high_product(a, b), c); } };
template <class T> struct MadWide {
  using W = typename Twice<T>::type;
  static W of(T a, T b, W c) { return Add<W>::of(W(a) * W(b), c); }
};
// By zero PTX leaves the result open: all ones, and the dividend as remainder.
template <class T> struct Div {
  static T of(T a, T b) { return b == 0 ? T(-1) : std::is_signed_v<T> && b == T(-1) ? Sub<T>::of(0, a) : T(a / b); }
};
template <class T> struct Rem {
  static T of(T a, T b) { return b == 0 ? a : std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b); }
};
template <class T> struct Abs { static T of(T a) { return a < 0 ? Sub<T>::of(0, a) : a; } };
template <class T> struct Neg { static T of(T a) { return Sub<T>::of(0, a); } };
template <class T> struct Min { static T of(T a, T b) { return a < b ? a : b; } };
template <class T> struct Max { static T of(T a, T b) { return a > b ? a : b; } };
template <class T> struct And { static T of(T a, T b) { return T(a & b); } };
template <class T> struct Or { static T of(T a, T b) { return T(a | b); } };
template <class T> struct Xor { static T of(T a, T b) { return T(a ^ b); } };
template <class T> struct Not { static T of(T a) { return T(~a); } };
template <class T> struct Cnot { static T of(T a) { return a == 0; } };
template <class T> struct Shl {
  static T of(T a, u32 by) { return by >= 8 * sizeof(T) ? T(0) : T(std::make_unsigned_t<T>(a) << by); }
};
template <class T> struct Shr {
  static T of(T a, u32 by) {
    constexpr u32 width = 8 * sizeof(T);
    return std::is_signed_v<T> ? T(a >> (by >= width ? width - 1 : by)) : by >= width ? T(0) : T(a >> by);
  }
};
inline u32 funnel_left(u32 low, u32 high, u32 by) {
  return static_cast<u32>(((static_cast<u64>(high) << 32 | low) << by) >> 32);
}
inline u32 funnel_right(u32 low, u32 high, u32 by) {
  return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> by);
}
struct ShfLeftWrap { static u32 of(u32 a, u32 b, u32 by) { return funnel_left(a, b, by & 31); } };
struct ShfRightWrap { static u32 of(u32 a, u32 b, u32 by) { return funnel_right(a, b, by & 31); } };
struct ShfLeftClamp { static u32 of(u32 a, u32 b, u32 by) { return funnel_left(a, b, by > 32 ? 32 : by); } };
struct ShfRightClamp { static u32 of(u32 a, u32 b, u32 by) { return funnel_right(a, b, by > 32 ? 32 : by); } };
template <class T> struct Popc { static u32 of(T a) { return __builtin_popcountll(a); } };
template <class T> struct Clz {
  static u32 of(T a) { return a ? __builtin_clzll(a) - (64 - 8 * sizeof(T)) : 8 * sizeof(T); }
};
template <class T> struct Brev {
  static T of(T a) {
    T result = 0;
    for (unsigned bit = 0; bit < 8 * sizeof(T); bit++) result |= (a >> bit & 1) << (8 * sizeof(T) - 1 - bit);
    return result;
  }
};
// The most significant bit that differs from the sign.
template <class T, bool shift> struct Bfind {
  static u32 of(T a) {
    u64 bits = static_cast<std::make_unsigned_t<T>>(a < 0 ? T(~a) : a);
    if (!bits) return 0xffffffffu;
    u32 at = 63 - __builtin_clzll(bits);
    return shift ? 8 * sizeof(T) - 1 - at : at;
  }
};
template <class T> struct Bfe {
  static T of(T a, u32 start, u32 length) {
    constexpr u32 width = 8 * sizeof(T);
    using U = std::make_unsigned_t<T>;
    start &= 0xff, length &= 0xff;
    U bits = start >= width ? U(0) : U(U(a) >> start);
    U mask = length >= width ? U(~U(0)) : U((U(1) << length) - 1);
    u32 top = start + length - 1 < width - 1 ? start + length - 1 : width - 1;
    bool sign = std::is_signed_v<T> && length && (U(a) >> top & 1);
    // Past the value's end its sign is read.
    U present = start >= width ? U(0) : U(~U(0)) >> start;
    return T((bits & mask & present) | (sign ? U(~(mask & present)) : U(0)));
  }
};
template <class T> struct Bfi {
  static T of(T a, T b, u32 start, u32 length) {
    start &= 0xff, length &= 0xff;
    if (start >= 8 * sizeof(T) || !length) return b;
    T mask = T((length >= 8 * sizeof(T) ? ~T(0) : (T(1) << length) - 1) << start);
    return T((b & ~mask) | (T(a << start) & mask));
  }
};
inline u32 byte_of(u64 bytes, u32 selector) {
  u32 byte = static_cast<u32>(bytes >> (8 * (selector & 7)) & 0xff);
  return selector & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte;
}
struct Prmt {
  static u32 of(u32 a, u32 b, u32 c) {
    u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; i++) result |= byte_of(bytes, c >> (4 * i) & 15) << (8 * i);
    return result;
  }
};
struct Lop3 {
  static u32 of(u32 a, u32 b, u32 c, u32 table) {
    u32 result = 0;
    for (u32 i = 0; i < 8; i++)
      if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return result;
  }
};
template <class T> struct Sad {
  static T of(T a, T b, T c) { return Add<T>::of(c, a < b ? Sub<T>::of(b, a) : Sub<T>::of(a, b)); }
};
// A mask of b bits from bit a on.
template <bool clamp> struct Bmsk {
  static u32 of(u32 a, u32 b) {
    if (!clamp) a &= 31, b &= 31;
    if (a > 31) return 0;
    u64 width = b > 31 ? 32 : b;
    return static_cast<u32>(((1ull << width) - 1) << a);
  }
};
// The n-th set bit from a place on, downwards for a negative n.
struct Fns {
  static u32 of(u32 mask, u32 base, s32 n) {
    if (!n) return base < 32 && mask >> base & 1 ? base : 0xffffffffu;
    s64 left = n < 0 ? -s64(n) : n;
    for (s64 at = s32(base); at >= 0 && at < 32; at += n < 0 ? -1 : 1)
      if (mask >> at & 1 && !--left) return static_cast<u32>(at);
    return 0xffffffffu;
  }
};
template <class A, class B, bool high> struct Dp2a {
  static u32 of(u32 a, u32 b, u32 c) {
    for (int i = 0; i < 2; i++) c += static_cast<u32>(s32(A(a >> (16 * i))) * s32(B(b >> (8 * i + (high ? 16 : 0)))));
    return c;
  }
};
template <class A, class B> struct Dp4a {
  static u32 of(u32 a, u32 b, u32 c) {
    for (int i = 0; i < 4; i++) c += static_cast<u32>(s32(A(a >> (8 * i))) * s32(B(b >> (8 * i))));
    return c;
  }
};

// Floating point. Rounding other than to nearest is the host's, set around the loop over lanes (see each_lane).
template <Rounding how, bool ftz, bool sat> struct OfF32 {
  static constexpr Rounding rounding = how;
  static f32 in(f32 x) { return flush<ftz>(x); }
  static f32 out(f32 x) { return sat ? saturated(flush<ftz>(x)) : canonical(flush<ftz>(x)); }
};
template <Rounding how, bool ftz, bool sat> struct AddF32 : OfF32<how, ftz, sat> {
  using B = OfF32<how, ftz, sat>;
  static f32 of(f32 a, f32 b) { return B::out(B::in(a) + B::in(b)); }
};
template <Rounding how, bool ftz, bool sat> struct SubF32 : OfF32<how, ftz, sat> {
  using B = OfF32<how, ftz, sat>;
  static f32 of(f32 a, f32 b) { return B::out(B::in(a) - B::in(b)); }
};
template <Rounding how, bool ftz, bool sat> struct MulF32 : OfF32<how, ftz, sat> {
  using B = OfF32<how, ftz, sat>;
  static f32 of(f32 a, f32 b) { return B::out(B::in(a) * B::in(b)); }
};
template <Rounding how, bool ftz, bool sat> struct FmaF32 : OfF32<how, ftz, sat> {
  using B = OfF32<how, ftz, sat>;
  static f32 of(f32 a, f32 b, f32 c) { return B::out(__builtin_fmaf(B::in(a), B::in(b), B::in(c))); }
};
template <Rounding how, bool ftz> struct DivF32 : OfF32<how, ftz, false> {
  using B = OfF32<how, ftz, false>;
  static f32 of(f32 a, f32 b) { return B::out(B::in(a) / B::in(b)); }
};
template <Rounding how, bool ftz> struct RcpF32 : OfF32<how, ftz, false> {
  using B = OfF32<how, ftz, false>;
  static f32 of(f32 a) { return B::out(1.0f / B::in(a)); }
};
template <Rounding how, bool ftz> struct SqrtF32 : OfF32<how, ftz, false> {
  using B = OfF32<how, ftz, false>;
  static f32 of(f32 a) { return B::out(__builtin_sqrtf(B::in(a))); }
};
template <Rounding how> struct OfF64 { static constexpr Rounding rounding = how; };
template <Rounding how> struct AddF64 : OfF64<how> { static f64 of(f64 a, f64 b) { return a + b; } };
template <Rounding how> struct SubF64 : OfF64<how> { static f64 of(f64 a, f64 b) { return a - b; } };
template <Rounding how> struct MulF64 : OfF64<how> { static f64 of(f64 a, f64 b) { return a * b; } };
template <Rounding how> struct DivF64 : OfF64<how> { static f64 of(f64 a, f64 b) { return a / b; } };
template <Rounding how> struct RcpF64 : OfF64<how> { static f64 of(f64 a) { return 1.0 / a; } };
template <Rounding how> struct SqrtF64 : OfF64<how> { static f64 of(f64 a) { return __builtin_sqrt(a); } };
template <Rounding how> struct FmaF64 : OfF64<how> {
  static f64 of(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }
};

// For 2^126 < |b| < 2^128 the quotient is 0, and NaN of an infinite a; else the documented error is 2 ulp.
template <bool ftz> struct DivApprox {
  static f32 of(f32 a, f32 b) {
    a = flush<ftz>(a), b = flush<ftz>(b);
    f32 size = __builtin_fabsf(b);
    if (size > 0x1p126f && size <= std::numeric_limits<f32>::max()) {
      if (!(__builtin_fabsf(a) <= std::numeric_limits<f32>::max())) return cast<f32>(NAN_F32);
      return cast<f32>((cast<u32>(a) ^ cast<u32>(b)) & 0x80000000u);
    }
    return canonical(flush<ftz>(a / b));
  }
};
template <bool ftz> struct Approx {
  static f32 in(f32 x) { return flush<ftz>(x); }
  static f32 out(f64 x) { return canonical(flush<ftz>(static_cast<f32>(x))); }
};
template <bool ftz> struct RcpApprox { static f32 of(f32 a) { return Approx<ftz>::out(1.0 / Approx<ftz>::in(a)); } };
// Without .ftz too, subnormal inputs give full results.
template <bool ftz> struct RsqrtApprox {
  static f32 of(f32 a) { return Approx<ftz>::out(1.0 / std::sqrt(static_cast<f64>(Approx<ftz>::in(a)))); }
};
template <bool ftz> struct SqrtApprox {
  static f32 of(f32 a) { return Approx<ftz>::out(std::sqrt(static_cast<f64>(Approx<ftz>::in(a)))); }
};
template <bool ftz> struct Ex2Approx { static f32 of(f32 a) { return Approx<ftz>::out(std::exp2(Approx<ftz>::in(a))); } };
template <bool ftz> struct Lg2Approx { static f32 of(f32 a) { return Approx<ftz>::out(std::log2(Approx<ftz>::in(a))); } };
template <bool ftz> struct SinApprox { static f32 of(f32 a) { return Approx<ftz>::out(std::sin(f64(Approx<ftz>::in(a)))); } };
template <bool ftz> struct CosApprox { static f32 of(f32 a) { return Approx<ftz>::out(std::cos(f64(Approx<ftz>::in(a)))); } };
// The upper 32 bits of the argument give those of the result; the lower ones are 0. Subnormals are flushed.
inline f64 upper(f64 x) { return cast<f64>(cast<u64>(x) & ~0xffffffffull); }
inline f64 flushed(f64 x) {
  u64 bits = cast<u64>(x);
  return cast<f64>((bits & 0x7ff0000000000000ull) ? bits : bits & 0x8000000000000000ull);
}
struct RcpApproxF64 { static f64 of(f64 a) { return upper(flushed(1.0 / flushed(upper(a)))); } };
template <bool ftz> struct RsqrtApproxF64 {
  static f64 of(f64 a) { return ftz ? upper(flushed(1.0 / std::sqrt(flushed(upper(a))))) : 1.0 / std::sqrt(a); }
};
struct TanhApprox { static f32 of(f32 a) { return canonical(std::tanh(a)); } };
template <class H> struct TanhApprox16 { static H of(H a) { return narrow<H>(std::tanh(wide(a))); } };
template <class H> struct Ex2Approx16 { static H of(H a) { return narrow<H>(std::exp2(wide(a))); } };

// The smaller one, -0 below +0; the other one of a NaN, or NaN with .NaN.
template <bool ftz, bool nan> struct MinF32 {
  static f32 of(f32 a, f32 b) {
    a = flush<ftz>(a), b = flush<ftz>(b);
    f32 equal = cast<f32>(cast<u32>(a) | cast<u32>(b)), least = a < b ? a : a > b ? b : equal;
    f32 other = nan ? cast<f32>(NAN_F32) : is_nan(a) ? canonical(b) : a;
    return is_nan(a) || is_nan(b) ? other : least;
  }
};
template <bool ftz, bool nan> struct MaxF32 {
  static f32 of(f32 a, f32 b) {
    a = flush<ftz>(a), b = flush<ftz>(b);
    f32 equal = cast<f32>(cast<u32>(a) & cast<u32>(b)), most = a > b ? a : a < b ? b : equal;
    f32 other = nan ? cast<f32>(NAN_F32) : is_nan(a) ? canonical(b) : a;
    return is_nan(a) || is_nan(b) ? other : most;
  }
};
struct MinF64 {
  static f64 of(f64 a, f64 b) { return is_nan(a) ? b : is_nan(b) || a < b || (a == b && std::signbit(a)) ? a : b; }
};
struct MaxF64 {
  static f64 of(f64 a, f64 b) { return is_nan(a) ? b : is_nan(b) || a > b || (a == b && std::signbit(b)) ? a : b; }
};
template <bool ftz> struct AbsF32 { static f32 of(f32 a) { return cast<f32>(cast<u32>(flush<ftz>(a)) & 0x7fffffffu); } };
template <bool ftz> struct NegF32 { static f32 of(f32 a) { return cast<f32>(cast<u32>(flush<ftz>(a)) ^ 0x80000000u); } };
struct AbsF64 { static f64 of(f64 a) { return cast<f64>(cast<u64>(a) & ~(1ull << 63)); } };
struct NegF64 { static f64 of(f64 a) { return cast<f64>(cast<u64>(a) ^ (1ull << 63)); } };
template <class F> struct Copysign {
  static F of(F a, F b) {
    constexpr Bits<F> sign = Bits<F>(1) << (8 * sizeof(F) - 1);
    return cast<F>(static_cast<Bits<F>>((cast<Bits<F>>(b) & ~sign) | (cast<Bits<F>>(a) & sign)));
  }
};

// f16 and bf16. A sum or product is exact enough in f32 that a second rounding changes nothing.
template <class H, bool ftz, bool sat> struct Of16 {
  static H in(H a) { return ftz ? flushed16(a) : a; }
  static H out(f32 x) {
    H h = narrow<H>(sat ? saturated(x) : x);
    return ftz ? flushed16(h) : h;
  }
};
template <class H, bool ftz, bool sat> struct Add16 {
  using B = Of16<H, ftz, sat>;
  static H of(H a, H b) { return B::out(wide(B::in(a)) + wide(B::in(b))); }
};
template <class H, bool ftz, bool sat> struct Sub16 {
  using B = Of16<H, ftz, sat>;
  static H of(H a, H b) { return B::out(wide(B::in(a)) - wide(B::in(b))); }
};
template <class H, bool ftz, bool sat> struct Mul16 {
  using B = Of16<H, ftz, sat>;
  static H of(H a, H b) { return B::out(wide(B::in(a)) * wide(B::in(b))); }
};
// .relu: negative results become +0; NaN stays, and is the canonical one, which is not negative.
template <class H> inline H relu16(H h) { return {static_cast<u16>(h.bits & 0x8000 ? 0 : h.bits)}; }
template <class H, bool ftz, bool sat, bool relu> struct Fma16 {
  using B = Of16<H, ftz, sat>;
  static H of(H a, H b, H c) {
    H h = fused(B::in(a), B::in(b), B::in(c));
    if (ftz) h = flushed16(h);
    if (sat) h = narrow<H>(saturated(wide(h)));
    return relu ? relu16(h) : h;
  }
};
template <class H> inline H canonical16(H h) { return is_nan(wide(h)) ? H{NAN_16} : h; }
template <class H, bool ftz, bool nan, bool max> struct MinMax16 {
  static H of(H a, H b) {
    if (ftz) a = flushed16(a), b = flushed16(b);
    bool none = is_nan(wide(a)), neither = is_nan(wide(b));
    if (none || neither) return nan || (none && neither) ? H{NAN_16} : none ? b : a;
    f32 x = wide(a), y = wide(b);
    if (x == y) return {static_cast<u16>(max ? a.bits & b.bits : a.bits | b.bits)};
    return (x < y) != max ? a : b;
  }
};
template <class H, bool ftz> struct Abs16 {
  static H of(H a) { return {static_cast<u16>((ftz ? flushed16(a) : a).bits & 0x7fff)}; }
};
template <class H, bool ftz> struct Neg16 {
  static H of(H a) { return {static_cast<u16>((ftz ? flushed16(a) : a).bits ^ 0x8000)}; }
};
// An instruction of 16 bits on both halves of a register.
template <class X> struct HalfOf;
template <> struct HalfOf<f16x2> { using type = f16; };
template <> struct HalfOf<bf16x2> { using type = bf16; };
template <class X> inline typename HalfOf<X>::type half_of(X x, int at) { return {static_cast<u16>(x.bits >> (16 * at))}; }
template <class X, class H = typename HalfOf<X>::type> inline X joined(H low, H high) {
  return {static_cast<u32>(high.bits) << 16 | low.bits};
}
// An operation on both halves. There is one function `of`, so that its operands' types can be deduced from it.
template <class X, class Op, class Signature = decltype(&Op::of)> struct Packed;
template <class X, class Op, class H, class... A> struct Packed<X, Op, H (*)(A...)> {
  template <class> using Pair = X;
  static X of(Pair<A>... pairs) { return joined<X>(Op::of(half_of(pairs, 0)...), Op::of(half_of(pairs, 1)...)); }
};

// Comparisons. The first six are false with a NaN, those that end in u are true.
template <class T> inline auto comparable(T x) { return x; }
inline f32 comparable(f16 x) { return wide(x); }
inline f32 comparable(bf16 x) { return wide(x); }
template <class T> inline bool unordered(T a, T b) { return a != a || b != b; }
#define DCA_COMPARISON(name, expression)                                   \
  template <class T, bool ftz = false> struct name {                       \
    using Type = T;                                                        \
    static bool of(T left, T right) {                                      \
      auto a = comparable(left), b = comparable(right);                    \
      if constexpr (ftz) a = flushed(a), b = flushed(b);                   \
      return expression;                                                   \
    }                                                                      \
  };
DCA_COMPARISON(Eq, a == b)
DCA_COMPARISON(Ne, a != b && !unordered(a, b))
DCA_COMPARISON(Lt, a < b)
DCA_COMPARISON(Le, a <= b)
DCA_COMPARISON(Gt, a > b)
DCA_COMPARISON(Ge, a >= b)
DCA_COMPARISON(Equ, a == b || unordered(a, b))
DCA_COMPARISON(Neu, a != b)
DCA_COMPARISON(Ltu, !(a >= b))
DCA_COMPARISON(Leu, !(a > b))
DCA_COMPARISON(Gtu, !(a <= b))
DCA_COMPARISON(Geu, !(a < b))
DCA_COMPARISON(Num, !unordered(a, b))
DCA_COMPARISON(IsNan, unordered(a, b))
#undef DCA_COMPARISON

// Conversions between integers: sign or zero extension, the low bits, or with .sat the nearest value.
template <class D, class S, bool sat> struct CvtInt {
  static D of(S a) {
    if constexpr (sat) {
      using L = std::numeric_limits<D>;
      __int128 wide_value = a;
      return wide_value < L::min() ? L::min() : wide_value > L::max() ? L::max() : static_cast<D>(a);
    }
    return static_cast<D>(a);
  }
};
// A float to an integral value in its own format: .rni, .rzi, .rmi, .rpi.
template <class F> inline F integral(F x, Rounding how) {
  return how == rn ? std::nearbyint(x) : how == rz ? std::trunc(x) : how == rm ? std::floor(x) : std::ceil(x);
}
// Out of range gives the nearest integer. Of a NaN: 0, and 2^(bits - 1) from .f64 or to 64 bits.
template <class D, class F> inline D to_integer(F x, bool large) {
  using L = std::numeric_limits<D>;
  if (is_nan(x)) return large ? D(u64(1) << (8 * sizeof(D) - 1)) : D(0);
  if (x <= static_cast<F>(L::min())) return L::min();
  return x >= static_cast<F>(L::max()) ? L::max() : static_cast<D>(x);
}
template <class D, class S, Rounding how, bool ftz> struct CvtToInt {
  static D of(S a) {
    if constexpr (std::is_same_v<S, f64>)
      return to_integer<D>(integral(a, how), true);
    else
      return to_integer<D>(integral(flush<ftz>(comparable(a)), how), sizeof(D) == 8);
  }
};
template <class D, class S, Rounding how, bool sat = false> struct CvtFromInt {
  static constexpr Rounding rounding = how;
  static D of(S a) {
    D value = static_cast<D>(a);
    return sat ? saturated(value) : value;
  }
};
template <class H, class S, Rounding how> struct CvtIntTo16 {
  static H of(S a) { return {static_cast<u16>(narrowed(static_cast<f64>(a), format_of<H>(), how))}; }
};
template <Rounding how, bool ftz, bool sat> struct CvtF32F64 {
  static constexpr Rounding rounding = how;
  static f32 of(f64 a) {
    f32 x = flush<ftz>(static_cast<f32>(a));
    return sat ? saturated(x) : canonical(x);
  }
};
template <bool ftz, bool sat> struct CvtF64F32 {
  static f64 of(f32 a) {
    f64 x = flush<ftz>(a);
    return sat ? saturated(x) : x;
  }
};
template <bool ftz, bool sat> struct CvtF32 {
  static f32 of(f32 a) { return sat ? saturated(flush<ftz>(a)) : flush<ftz>(a); }
};
template <class F, Rounding how, bool ftz, bool sat> struct CvtIntegral {
  static F of(F a) {
    if constexpr (ftz) a = flushed(a);
    F x = integral(a, how);
    return sat ? saturated(x) : canonical(x);
  }
};
// .ftz flushes the f32; there is none of f16 that an f32 cannot hold.
template <class H, bool ftz, bool sat> struct CvtF32From16 {
  static f32 of(H a) {
    f32 x = flush<ftz>(wide(a));
    return sat ? saturated(x) : x;
  }
};
template <class H, Rounding how, bool ftz, bool sat, bool relu> struct CvtTo16 {
  static H of(f32 a) {
    f32 x = flush<ftz>(a);
    if (sat) x = saturated(x);
    H h = how == rn ? narrow<H>(x) : H{static_cast<u16>(narrowed(x, format_of<H>(), how))};
    return relu ? relu16(h) : h;
  }
};
template <class H> struct CvtF64To16 {
  static H of(f64 a) { return {static_cast<u16>(narrowed(a, format_of<H>(), rn))}; }
};
// The first source goes to the upper half.
template <class X, Rounding how, bool relu> struct CvtPair {
  using H = typename HalfOf<X>::type;
  static X of(f32 a, f32 b) {
    using C = CvtTo16<H, how, false, false, relu>;
    return {static_cast<u32>(C::of(a).bits) << 16 | C::of(b).bits};
  }
};
template <class X> inline const Format &format_of_pair();
template <> inline const Format &format_of_pair<e4m3x2>() { return E4M3; }
template <> inline const Format &format_of_pair<e5m2x2>() { return E5M2; }
template <class X, bool relu> struct CvtPair8 {
  static u32 one(f32 x) {
    u32 bits = narrowed(x, format_of_pair<X>(), rn, true);
    return relu && bits & 0x80 ? 0 : bits;
  }
  static X of(f32 a, f32 b) { return {static_cast<u16>(one(a) << 8 | one(b))}; }
};
template <class X, bool relu> struct CvtPair8From16 {
  static X of(f16x2 a) { return CvtPair8<X, relu>::of(wide(half_of(a, 1)), wide(half_of(a, 0))); }
};
template <class X, bool relu> struct CvtPair16From8 {
  static f16x2 of(X a) {
    u32 high = narrowed(widened(a.bits >> 8, format_of_pair<X>()), F16, rn);
    u32 low = narrowed(widened(a.bits & 0xff, format_of_pair<X>()), F16, rn);
    f16x2 both{high << 16 | low};
    return relu ? joined<f16x2>(relu16(half_of(both, 0)), relu16(half_of(both, 1))) : both;
  }
};

}  // namespace dca
#endif
