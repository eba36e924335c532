//! Hash maps that have the same order in every run.

/// Takes the place of the one by which hash maps choose their order: which inputs a seed leads to
/// depends on what is compared with what.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, bytes: usize, _flags: u32) -> isize {
    // SAFETY: the caller gives a buffer of this size, as to the real one.
    unsafe { buffer.write_bytes(7, bytes) };
    isize::try_from(bytes).expect("the size of a buffer")
}
