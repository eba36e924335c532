//! Tensors as views of the mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::archive::MappedFile;

/// Number format of a stored tensor (little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Bool => 1,
        }
    }

    /// The format of a storage class of torch ("FloatStorage").
    pub fn from_storage_class(name: &str) -> Option<Self> {
        Some(match name {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "LongStorage" => DType::I64,
            "IntStorage" => DType::I32,
            "BoolStorage" => DType::Bool,
            _ => return None,
        })
    }

    fn read(self, bytes: &[u8]) -> f64 {
        fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
            let mut out = [0; N];
            out.copy_from_slice(&bytes[..N]);
            out
        }
        match self {
            DType::F32 => f32::from_le_bytes(array(bytes)).into(),
            DType::F64 => f64::from_le_bytes(array(bytes)),
            DType::F16 => half::f16::from_le_bytes(array(bytes)).into(),
            DType::BF16 => half::bf16::from_le_bytes(array(bytes)).into(),
            DType::I64 => i64::from_le_bytes(array(bytes)) as f64,
            DType::I32 => i32::from_le_bytes(array(bytes)).into(),
            DType::Bool => f64::from(u8::from(bytes[0] != 0)),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A float type that stored numbers are converted to.
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync {
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
}

impl Element for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Element for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
}

/// One tensor of the file: shape, strides and offset over a range of the map. Copying the view
/// copies no numbers; the map lives as long as any view of it.
#[derive(Clone)]
pub struct TensorView {
    file: Arc<MappedFile>,
    storage: Range<usize>,
    dtype: DType,
    shape: Box<[usize]>,
    strides: Box<[usize]>,
    offset: usize,
}

impl fmt::Debug for TensorView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.dtype, self.shape)
    }
}

impl TensorView {
    /// A view of `storage` (bytes of `file`). `strides` and `offset` count numbers, not bytes.
    /// Fails, with the reason, unless every number of the view lies inside the storage and no
    /// number is seen more often than the storage holds numbers.
    pub(super) fn new(
        file: Arc<MappedFile>,
        storage: Range<usize>,
        dtype: DType,
        shape: Box<[usize]>,
        strides: Box<[usize]>,
        offset: usize,
    ) -> Result<Self, String> {
        if storage.start > storage.end || storage.end > file.len() {
            return Err("its storage lies outside the file".to_owned());
        }
        if shape.len() != strides.len() {
            return Err(format!(
                "{} dimensions but {} strides",
                shape.len(),
                strides.len()
            ));
        }
        let held = storage.len() / dtype.size();
        let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |at, (&d, &stride)| {
                at.checked_add(d.saturating_sub(1).checked_mul(stride)?)
            });
        match (len, last) {
            (Some(0), _) => {}
            (Some(len), Some(last)) if last < held && len <= held => {}
            _ => {
                return Err(format!(
                    "shape {shape:?} with strides {strides:?} at offset {offset} does not fit in \
                     a storage of {held} numbers"
                ));
            }
        }
        Ok(Self {
            file,
            storage,
            dtype,
            shape,
            strides,
            offset,
        })
    }

    /// Number format in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extent of every dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Distance between neighbours along every dimension, in numbers.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Place of the first number in the storage, in numbers.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Numbers in this view.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the view has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the whole storage (of which this may be a part) lies in the file, bytes.
    pub fn storage(&self) -> Range<usize> {
        self.storage.clone()
    }

    /// Whether the numbers lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&d, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if d != 1 && stride != expected {
                return false;
            }
            expected *= d;
        }
        true
    }

    fn storage_bytes(&self) -> &[u8] {
        self.file.bytes(self.storage.clone())
    }

    /// Bytes of the view in the file if it is contiguous.
    fn range(&self) -> Option<Range<usize>> {
        if !self.is_contiguous() {
            return None;
        }
        if self.is_empty() {
            return Some(self.storage.start..self.storage.start);
        }
        let start = self.storage.start + self.offset * self.dtype.size();
        Some(start..start + self.len() * self.dtype.size())
    }

    /// The numbers where they are, without a copy: for a contiguous, aligned F32 tensor on a
    /// little-endian machine; `None` otherwise (then use [`TensorView::to_vec`]).
    pub fn as_f32_slice(&self) -> Option<&[f32]> {
        if self.dtype != DType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.file.bytes(self.range()?)).ok()
    }

    /// A copy of the numbers in row-major order, converted to `T`.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        if let Some(floats) = self.as_f32_slice() {
            return floats.iter().map(|&x| T::from_f64(x.into())).collect();
        }
        let size = self.dtype.size();
        let mut out = Vec::with_capacity(self.len());
        if let Some(range) = self.range() {
            let bytes = self.file.bytes(range);
            out.extend(
                bytes
                    .chunks_exact(size)
                    .map(|number| T::from_f64(self.dtype.read(number))),
            );
            return out;
        }
        let bytes = self.storage_bytes();
        let mut index = vec![0usize; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..self.len() {
            out.push(T::from_f64(self.dtype.read(&bytes[at * size..])));
            // Odometer: the last dimension turns fastest.
            for d in (0..index.len()).rev() {
                index[d] += 1;
                at += self.strides[d];
                if index[d] < self.shape[d] {
                    break;
                }
                at -= self.strides[d] * index[d];
                index[d] = 0;
            }
        }
        out
    }

    /// The sub-view at `index` of the first dimension (one expert of a mixture). `None` if there
    /// is no such index.
    pub fn at(&self, index: usize) -> Option<TensorView> {
        let (&extent, rest) = self.shape.split_first()?;
        if index >= extent {
            return None;
        }
        Some(TensorView {
            file: self.file.clone(),
            storage: self.storage.clone(),
            dtype: self.dtype,
            shape: rest.into(),
            strides: self.strides[1..].into(),
            offset: self.offset + index * self.strides[0],
        })
    }

    /// Asks the kernel to read this tensor ahead of its use.
    pub fn prefetch(&self) {
        self.file.prefetch(self.storage.clone());
    }

    /// Gives back the physical memory that holds this tensor's part of the map; using the tensor
    /// again is correct and reads it again. For large expert weights after mixing.
    pub fn release(&self) {
        self.file
            .release(self.range().unwrap_or_else(|| self.storage.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A view of numbers written to a file of their own.
    fn view(
        bytes: &[u8],
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
        offset: usize,
    ) -> Result<TensorView, String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("writing");
        let map = Arc::new(MappedFile::open(file.path()).expect("mapping"));
        let storage = 0..bytes.len();
        TensorView::new(map, storage, dtype, shape.into(), strides.into(), offset)
    }

    fn floats(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn strides_and_offset_are_honoured() {
        let bytes = floats(24);
        // Column-major 3 x 4 from number 2 on.
        let t = view(&bytes, DType::F32, &[3, 4], &[1, 3], 2).expect("a view");
        assert!(!t.is_contiguous() && t.as_f32_slice().is_none());
        let expected = [2, 5, 8, 11, 3, 6, 9, 12, 4, 7, 10, 13].map(|i| i as f64);
        assert_eq!(t.to_vec::<f64>(), expected);
        let row = t.at(1).expect("a row");
        assert_eq!(row.to_vec::<f32>(), [3.0, 6.0, 9.0, 12.0]);
        // Row-major from number 12 on: contiguous, in place.
        let t = view(&bytes, DType::F32, &[2, 1, 6], &[6, 99, 1], 12).expect("a view");
        assert!(t.is_contiguous());
        assert_eq!(t.as_f32_slice().expect("in place")[0], 12.0);
        assert_eq!(t.at(1).expect("half").to_vec::<f64>()[5], 23.0);
        // A scalar, and nothing.
        let t = view(&bytes, DType::F32, &[], &[], 23).expect("a scalar");
        assert_eq!(t.to_vec::<f64>(), [23.0]);
        assert!(t.at(0).is_none());
        let t = view(&bytes, DType::F32, &[0, 7], &[7, 1], 500).expect("nothing");
        assert!(t.is_empty() && t.to_vec::<f64>().is_empty());
    }

    #[test]
    fn views_beyond_their_storage_are_refused() {
        let bytes = floats(24);
        for (shape, strides, offset) in [
            (&[25][..], &[1][..], 0),
            (&[24], &[1], 1),
            (&[2], &[24], 0),
            (&[5, 5], &[0, 1], 0),
            (&[usize::MAX, 2], &[1, 1], 0),
            (&[2, 2], &[usize::MAX, usize::MAX], 1),
            (&[1], &[1], usize::MAX),
            (&[1, 1], &[1], 0),
        ] {
            let refused = view(&bytes, DType::F32, shape, strides, offset);
            assert!(refused.is_err(), "{shape:?} {strides:?} {offset}");
        }
    }

    #[test]
    fn every_number_format_is_converted() {
        let check = |dtype: DType, bytes: &[u8], expected: &[f64]| {
            let n = expected.len();
            let t = view(bytes, dtype, &[n], &[1], 0).expect("a view");
            assert_eq!(t.to_vec::<f64>(), expected, "{dtype:?}");
            // The same through the strided path, in single precision.
            let t = view(bytes, dtype, &[1, n], &[0, 1], 0).expect("a view");
            let single: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
            assert_eq!(t.to_vec::<f32>(), single, "{dtype:?}");
        };
        // 1.5, -2, the smallest subnormal.
        check(
            DType::F16,
            &[0x00, 0x3e, 0x00, 0xc0, 0x01, 0x00],
            &[1.5, -2.0, 2f64.powi(-24)],
        );
        check(DType::BF16, &[0xc0, 0x3f, 0x00, 0xc0], &[1.5, -2.0]);
        check(DType::F64, &0.1f64.to_le_bytes(), &[0.1]);
        check(DType::I64, &(-7i64).to_le_bytes(), &[-7.0]);
        check(DType::I32, &(-7i32).to_le_bytes(), &[-7.0]);
        check(DType::Bool, &[0, 1, 2], &[0.0, 1.0, 1.0]);
    }
}
