// ARM with the dot product instructions of ARMv8.2: four registers of 4 lanes each.
#pragma once

#include <arm_neon.h>

#define IVL_INLINE static inline __attribute__((always_inline))

namespace ivl {
namespace IVL_VARIANT {

#define IVL_ROW_BLOCKS 2, 1
constexpr int kFloatRows = 4;
constexpr int kFloatVectors = 1;

struct Bytes { uint8x16_t at[4]; };
struct Floats { float32x4_t at[4]; };
struct Sum { int32x4_t at[4]; };

// The instruction multiplies signed by signed: levels below 128 are both, 8 bits are made signed.
constexpr bool kSignedBytes = true;
constexpr int32_t kFloatBits = 0;
constexpr float kFloatBase = 0.0f;

IVL_INLINE Bytes load_bytes(const void* p) {
  Bytes x;
  for (int i = 0; i < 4; ++i) x.at[i] = vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i);
  return x;
}
IVL_INLINE void store_bytes(void* p, Bytes x) {
  for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<uint8_t*>(p) + 16 * i, x.at[i]);
}
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick(Bytes x) {
  for (uint8x16_t& part : x.at) {
    if constexpr (FROM > TO) part = vshrq_n_u8(part, FROM - TO);
    if constexpr (FROM < TO) part = vshlq_n_u8(part, TO - FROM);
    part = vandq_u8(part, vdupq_n_u8(static_cast<uint8_t>(((1 << BITS) - 1) << TO)));
  }
  return x;
}
template <int FROM, int BITS, int TO>
IVL_INLINE Bytes pick_or(Bytes low, Bytes x) {
  const Bytes high = pick<FROM, BITS, TO>(x);
  for (int i = 0; i < 4; ++i) low.at[i] = vorrq_u8(low.at[i], high.at[i]);
  return low;
}
IVL_INLINE Bytes lookup(const uint8_t* table, Bytes x) {
  const uint8x16_t all = vld1q_u8(table);
  for (uint8x16_t& part : x.at) part = vqtbl1q_u8(all, part);
  return x;
}

IVL_INLINE Sum sum_from(int32_t start) {
  Sum sum;
  for (int32x4_t& part : sum.at) part = vdupq_n_s32(start);
  return sum;
}
template <int LIMIT>
IVL_INLINE void sum_add(Sum& sum, Bytes w, const int8_t* a, int) {
  int32_t four;
  memcpy(&four, a, 4);
  const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
  for (int i = 0; i < 4; ++i) {
    uint8x16_t part = w.at[i];
    if constexpr (LIMIT == 256) part = veorq_u8(part, vdupq_n_u8(0x80));
    sum.at[i] = vdotq_s32(sum.at[i], vreinterpretq_s8_u8(part), x);
  }
}
template <int LIMIT>
IVL_INLINE Floats sum_scaled(const Sum& sum, Floats scale, Floats) {
  for (int i = 0; i < 4; ++i) scale.at[i] = vmulq_f32(vcvtq_f32_s32(sum.at[i]), scale.at[i]);
  return scale;
}

IVL_INLINE Floats splat(float value) {
  Floats x;
  for (float32x4_t& part : x.at) part = vdupq_n_f32(value);
  return x;
}
IVL_INLINE Floats zeros() { return splat(0.0f); }
IVL_INLINE Floats load_floats(const float* p) {
  Floats x;
  for (int i = 0; i < 4; ++i) x.at[i] = vld1q_f32(p + 4 * i);
  return x;
}
IVL_INLINE void store_floats(float* p, Floats x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.at[i]);
}
IVL_INLINE Floats multiply(Floats a, Floats b) {
  for (int i = 0; i < 4; ++i) a.at[i] = vmulq_f32(a.at[i], b.at[i]);
  return a;
}
IVL_INLINE Floats add(Floats a, Floats b) {
  for (int i = 0; i < 4; ++i) a.at[i] = vaddq_f32(a.at[i], b.at[i]);
  return a;
}
IVL_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  for (int i = 0; i < 4; ++i) c.at[i] = vfmaq_f32(c.at[i], a.at[i], b.at[i]);
  return c;
}
// Of two numbers of which one is none, the other.
IVL_INLINE Floats maximum(Floats a, Floats b) {
  for (int i = 0; i < 4; ++i) a.at[i] = vmaxnmq_f32(a.at[i], b.at[i]);
  return a;
}
IVL_INLINE Floats magnitude(Floats a) {
  for (float32x4_t& part : a.at) part = vabsq_f32(part);
  return a;
}
IVL_INLINE float largest(Floats a) {
  const float32x4_t low = vmaxnmq_f32(a.at[0], a.at[1]), high = vmaxnmq_f32(a.at[2], a.at[3]);
  return vmaxnmvq_f32(vmaxnmq_f32(low, high));
}
IVL_INLINE float total(Floats a) {
  const float32x4_t low = vaddq_f32(a.at[0], a.at[2]), high = vaddq_f32(a.at[1], a.at[3]);
  const float32x4_t four = vaddq_f32(low, high);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
IVL_INLINE Floats from_float16(const void* p) {
  Floats x;
  for (int i = 0; i < 4; ++i) {
    const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(static_cast<const uint8_t*>(p) + 8 * i));
    x.at[i] = vcvt_f32_f16(vreinterpret_f16_u16(bits));
  }
  return x;
}
IVL_INLINE Floats from_bfloat16(const void* p) {
  Floats x;
  for (int i = 0; i < 4; ++i) {
    const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(static_cast<const uint8_t*>(p) + 8 * i));
    x.at[i] = vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(bits), 16));
  }
  return x;
}
IVL_INLINE Floats from_int8(const void* p) {
  const int8x16_t all = vld1q_s8(static_cast<const int8_t*>(p));
  const int16x8_t low = vmovl_s8(vget_low_s8(all)), high = vmovl_s8(vget_high_s8(all));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
           vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
IVL_INLINE Floats from_uint8(const void* p) {
  const uint8x16_t all = vld1q_u8(static_cast<const uint8_t*>(p));
  const uint16x8_t low = vmovl_u8(vget_low_u8(all)), high = vmovl_u8(vget_high_u8(all));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
           vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
}
IVL_INLINE int32_t to_int8(int8_t* p, Floats x) {
  int32x4_t whole[4];
  for (int i = 0; i < 4; ++i) whole[i] = vcvtnq_s32_f32(x.at[i]);
  const int16x8_t low = vcombine_s16(vqmovn_s32(whole[0]), vqmovn_s32(whole[1]));
  const int16x8_t high = vcombine_s16(vqmovn_s32(whole[2]), vqmovn_s32(whole[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
  return vaddvq_s32(
      vaddq_s32(vaddq_s32(whole[0], whole[1]), vaddq_s32(whole[2], whole[3])));
}
IVL_INLINE void to_float16(void* p, Floats x) {
  for (int i = 0; i < 4; ++i) {
    const uint16x4_t bits = vreinterpret_u16_f16(vcvt_f16_f32(x.at[i]));
    vst1_u8(static_cast<uint8_t*>(p) + 8 * i, vreinterpret_u8_u16(bits));
  }
}
IVL_INLINE void to_bfloat16(void* p, Floats x) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.at[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t number = vceqq_f32(x.at[i], x.at[i]);
    const uint32x4_t y = vbslq_u32(number, vshrq_n_u32(rounded, 16), vdupq_n_u32(0x7FC0));
    vst1_u8(static_cast<uint8_t*>(p) + 8 * i, vreinterpret_u8_u16(vmovn_u32(y)));
  }
}
// 16 vectors as the rows of a square, turned into its columns.
IVL_INLINE void transpose(Floats* x) {
  float square[16][16];
  for (int i = 0; i < 16; ++i) store_floats(square[i], x[i]);
  for (int i = 0; i < 16; ++i) {
    float column[16];
    for (int j = 0; j < 16; ++j) column[j] = square[j][i];
    x[i] = load_floats(column);
  }
}
IVL_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace IVL_VARIANT
}  // namespace ivl
