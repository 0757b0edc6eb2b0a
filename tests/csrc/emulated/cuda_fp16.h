#pragma once
#include <bit>

using __half = _Float16;
inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<_Float16>(bits); }
inline float __half2float(__half x) { return x; }
