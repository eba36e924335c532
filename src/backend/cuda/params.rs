//! The parameters of the kernels: the structures of `cuda/params.h`, field by field. A test compares
//! names, offsets and sizes with what the C++ compiler made of that file.

use bytemuck::{Pod, Zeroable};

/// An address in the memory of a device; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` bytes further on.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }

    /// The address of element `index` of an array of `T`.
    pub fn at<T>(self, index: usize) -> DevicePtr {
        self.offset(index * size_of::<T>())
    }
}

/// A structure that a kernel takes.
pub trait Params: Pod {
    /// Its name in `cuda/params.h`.
    const NAME: &'static str;
}

/// Offset and size of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Name of the structure.
    pub structure: &'static str,
    /// Name of the field.
    pub field: &'static str,
    /// Bytes from the beginning.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// Declares structures as C++ lays them out, and `layouts()`, which tells how.
macro_rules! params {
    ($($(#[$about:meta])* struct $name:ident {
        $($(#[$about_field:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
            #[repr(C)]
            pub struct $name {
                $($(#[$about_field])* pub $field: $type,)*
            }

            impl Params for $name {
                const NAME: &'static str = stringify!($name);
            }
        )*

        /// All fields of all structures of this list.
        pub fn layouts() -> Vec<FieldLayout> {
            vec![$($(FieldLayout {
                structure: stringify!($name),
                field: stringify!($field),
                offset: std::mem::offset_of!($name, $field),
                size: size_of::<$type>(),
            },)*)*]
        }
    };
}
#[allow(unused_imports)]
pub(crate) use params;

params! {
    /// A range of edges that one pass computes, with their target atoms.
    struct Chunk {
        /// First target atom.
        atom_begin: u32,
        /// End of the target atoms.
        atom_end: u32,
        /// First edge.
        edge_begin: u32,
        /// End of the edges.
        edge_end: u32,
        /// Tiles that cut the edges.
        edge_tiles: u32,
        /// Tiles that cut the atoms.
        atom_tiles: u32,
        /// 0
        pad_0: u32,
        /// 0
        pad_1: u32,
    }

    /// Rows of one system, at most 128, counted over the batch.
    struct Tile {
        /// Which system.
        system: u32,
        /// First row.
        begin: u32,
        /// End of the rows.
        end: u32,
        /// 0
        pad: u32,
    }

    /// `fill`: the first `count` words of `destination` become `value`.
    struct FillParams {
        /// `[count]` words.
        destination: DevicePtr,
        /// How many.
        count: u64,
        /// Bits of the value.
        value: u32,
        /// 0
        pad: u32,
    }
}
