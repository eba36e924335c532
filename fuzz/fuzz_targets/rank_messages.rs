//! What ranks say to each other: bytes that decode are exactly the bytes that encoding gives.

#![no_main]

use libfuzzer_sys::fuzz_target;
use umaserve::comm::wire;

fuzz_target!(|data: &[u8]| {
    if let Ok(shard) = wire::decode_shard(data) {
        assert_eq!(wire::encode_shard(&shard), data);
    }
    if let Ok((shard, outcomes)) = wire::decode_outcomes(data) {
        assert_eq!(wire::encode_outcomes(shard, &outcomes), data);
    }
});
