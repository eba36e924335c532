//! Number types.

/// Number types of the products of edge values. Everything else is f32, geometry and sums over a
/// system f64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// IEEE f32.
    F32,
    /// Operands with 10 bits of mantissa, as tf32 has, and f32 sums: fp16, in whose range the gradients
    /// are kept by a power of two. Edge values that are no operands are f32.
    #[default]
    Tf32,
    /// The same, with edge values in fp16 throughout.
    F16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
        })
    }
}

/// How edge values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
}

impl Number {
    /// Of one.
    pub fn bytes(self) -> usize {
        match self {
            Number::F32 => 4,
            Number::F16 => 2,
        }
    }
}

/// The number types of edge values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeNumbers {
    /// What products write, and whatever no product reads.
    pub values: Number,
    /// What products read.
    pub operands: Number,
}

impl EdgeNumbers {
    /// Those of a precision.
    pub fn of(precision: Precision) -> EdgeNumbers {
        let (values, operands) = match precision {
            Precision::F32 => (Number::F32, Number::F32),
            Precision::Tf32 => (Number::F32, Number::F16),
            Precision::F16 => (Number::F16, Number::F16),
        };
        EdgeNumbers { values, operands }
    }

    /// Of a value or of an operand.
    pub fn number(self, operand: bool) -> Number {
        match operand {
            true => self.operands,
            false => self.values,
        }
    }

    /// Whether gradients carry a power of two: where they are stored in the narrow range of fp16.
    pub fn scaled(self) -> bool {
        self.operands == Number::F16
    }
}
