// What this processor and its operating system support, by the CPUID and XGETBV instructions. The compilers' own
// __builtin_cpu_supports does not do: Clang does not know "amx-tile", and GCC before 13 does not know "avxvnni".
// Reference: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A (CPUID) and volume 1, chapter 13.
#pragma once

#ifdef TS_X86
#include <cpuid.h>

#include <cstdint>
#include <cstring>

namespace ts {

struct CpuFeatures {
  bool intel = false;  // whether the vendor is Intel
  bool avx2_fma = false;
  bool avx512 = false;  // F, DQ, BW and VL
  bool avx512_bf16 = false;
  bool avx512_vnni = false;
  bool avx_vnni = false;
  bool amx_bf16 = false;
  bool amx_int8 = false;
};

// The register state that the operating system saves at a context switch (XCR0). An instruction set whose registers it
// does not save must not be used, whatever CPUID says.
static inline uint64_t saved_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

static inline bool bit(uint32_t word, int number) { return word >> number & 1; }

static inline CpuFeatures detect_cpu_features() {
  struct Leaf {
    uint32_t a, b, c, d;
  };
  // A leaf above the largest that the processor has reads as zeros.
  const auto leaf = [](uint32_t number, uint32_t part) {
    Leaf found{};
    if (!__get_cpuid_count(number, part, &found.a, &found.b, &found.c, &found.d)) return Leaf{};
    return found;
  };
  CpuFeatures found;
  const Leaf vendor = leaf(0, 0), basic = leaf(1, 0), extended = leaf(7, 0);
  // Leaf 7 says in EAX how many parts it has.
  const Leaf more = extended.a >= 1 ? leaf(7, 1) : Leaf{};
  char name[12];
  std::memcpy(name, &vendor.b, 4);
  std::memcpy(name + 4, &vendor.d, 4);
  std::memcpy(name + 8, &vendor.c, 4);
  found.intel = std::memcmp(name, "GenuineIntel", sizeof name) == 0;

  constexpr int kOsxsave = 27, kAvx = 28, kFma = 12;  // leaf 1, ECX
  if (!bit(basic.c, kOsxsave) || !bit(basic.c, kAvx)) return found;
  constexpr uint64_t kAvxState = 0x6;            // XMM, upper halves of YMM
  constexpr uint64_t kAvx512State = 0xe6;        // and mask registers, upper halves of ZMM0-15, ZMM16-31
  constexpr uint64_t kAmxState = 0x60000;        // TILECFG, TILEDATA
  const uint64_t state = saved_state();
  if ((state & kAvxState) != kAvxState) return found;
  found.avx2_fma = bit(extended.b, 5) && bit(basic.c, kFma);
  found.avx_vnni = found.avx2_fma && bit(more.a, 4);
  if ((state & kAvx512State) != kAvx512State) return found;
  found.avx512 = found.avx2_fma && bit(extended.b, 16) && bit(extended.b, 17) && bit(extended.b, 30) &&
                 bit(extended.b, 31);
  found.avx512_vnni = found.avx512 && bit(extended.c, 11);
  found.avx512_bf16 = found.avx512 && bit(more.a, 5);
  if ((state & kAmxState) != kAmxState || !bit(extended.d, 24)) return found;
  found.amx_bf16 = found.avx512_bf16 && bit(extended.d, 22);
  found.amx_int8 = found.avx512_vnni && bit(extended.d, 25);
  return found;
}

// Detected once.
static inline const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect_cpu_features();
  return found;
}

}  // namespace ts
#endif
