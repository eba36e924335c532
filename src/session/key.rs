//! The name by which a viewer finds its session again.

/// Names a session beyond its socket: 128 random bits, 32 hexadecimal digits on the wire. Whoever
/// knows it may resume the session, so it is written to no log.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey(u128);

impl SessionKey {
    /// A key of these bytes, which should be random.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        SessionKey(u128::from_le_bytes(bytes))
    }

    /// Reads 32 hexadecimal digits; anything else is no key.
    ///
    /// ```
    /// use umaserve::session::SessionKey;
    /// let key = SessionKey::from_bytes([7; 16]);
    /// assert_eq!(SessionKey::parse(&key.digits()), Some(key));
    /// assert_eq!(SessionKey::parse("7"), None);
    /// ```
    pub fn parse(digits: &str) -> Option<Self> {
        let all_digits = digits.bytes().all(|b| b.is_ascii_hexdigit());
        (digits.len() == 32 && all_digits)
            .then(|| u128::from_str_radix(digits, 16).ok())
            .flatten()
            .map(SessionKey)
    }

    /// The 32 digits.
    pub fn digits(&self) -> String {
        format!("{:032x}", self.0)
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey(secret)")
    }
}
