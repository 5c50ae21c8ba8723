/* Vector types of KERNELS_BYTES, for the files that make a variant of the kernels. No guard: see reduce_kernels.h. */
#include <stdint.h>

#define VECTOR(_name, _type) typedef _type v_##_name __attribute__((vector_size(KERNELS_BYTES)))
VECTOR(f32, float);
VECTOR(f64, double);
VECTOR(i8, int8_t);
VECTOR(u8, uint8_t);
VECTOR(i16, int16_t);
VECTOR(u16, uint16_t);
VECTOR(i32, int32_t);
VECTOR(u32, uint32_t);
VECTOR(i64, int64_t);
VECTOR(u64, uint64_t);
#undef VECTOR
/* As many 16-bit floats as v_f32 has lanes. */
typedef uint16_t v_half __attribute__((vector_size(KERNELS_BYTES / 2)));
