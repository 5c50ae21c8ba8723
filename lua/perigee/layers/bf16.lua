--- bf16: sums and averages of f32 tensors travel as bf16, half the bytes, with error feedback.
--
--   perigee.init { backend = "bf16(native)", options = { bf16 = { feedback = false } } }
--
-- As fp16 (see there for operations and options), with the range of f32 and 8 bits of precision instead of 11: nothing
-- overflows, and error feedback matters more.
return require "perigee.layers.half".define("bf16", "bf16")
