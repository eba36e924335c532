//! The compiled kernels that this program carries.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Oldest compute capability that the kernels run on.
pub const OLDEST: (u32, u32) = (8, 0);

/// Whether this build has kernels, and if not, what to do.
pub const fn available() -> Result<(), &'static str> {
    match NVCC {
        Some(_) => Ok(()),
        None => Err(
            "this build of umaserve has no CUDA kernels (there was no nvcc when it was built); \
             use --device cpu or auto",
        ),
    }
}

/// The images for a device of this compute capability: (source, image).
///
/// Code made for 8.0 runs on every 8.x; code made for 9.0a on 9.0 alone; code made for 10.0 on
/// every 10.x. For all others the images of 8.0 hold PTX, which the driver compiles.
pub fn for_capability(capability: (u32, u32)) -> Vec<(&'static str, &'static [u8])> {
    let arch = match capability {
        (9, 0) => "sm_90a",
        (10, _) => "sm_100",
        _ => "sm_80",
    };
    let images = IMAGES.iter().filter(|(_, made_for, _)| *made_for == arch);
    images.map(|&(source, _, image)| (source, image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_from_the_oldest_on_finds_images_of_all_sources() {
        let mut sources: Vec<_> = IMAGES.iter().map(|(source, ..)| *source).collect();
        sources.dedup();
        for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)] {
            let images = for_capability(capability);
            let found: Vec<_> = images.iter().map(|(source, _)| *source).collect();
            assert_eq!(found, sources, "{capability:?}");
            assert!(images.iter().all(|(_, image)| image.len() > 100));
        }
        assert_eq!(available().is_ok(), !IMAGES.is_empty());
    }
}
