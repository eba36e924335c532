//! Who may come in: tokens, origins, and patience with those who guess.
//!
//! A token is compared by its digest and in constant time, and appears nowhere in the output: its
//! `Debug` hides it, and the query parameter is taken out of the address before anything else sees
//! the request. A right token is never slowed down, so nobody can lock out others who come from
//! the same address (all who come through one tunnel do); wrong ones are answered later and
//! later.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;

use super::Shared;
use super::limits::Account;

/// Name of the cookie and of its value's other ways in.
const COOKIE: &str = "umaserve_token";
/// Name of the query parameter.
const PARAMETER: &str = "token";
/// Shortest token that a user may choose, characters.
pub const SHORTEST_TOKEN: usize = 16;
/// Longest token, characters.
pub const LONGEST_TOKEN: usize = 512;

/// First wait for an answer to a wrong token; it doubles with every further one.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Most that one wrong token adds to the wait.
const LONGEST_STEP: Duration = Duration::from_secs(2);
/// Wrong tokens that would have to wait longer are refused at once with 429.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// After so long without a wrong token a peer is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// Peers that are remembered; of more, the one heard of the longest time ago is forgotten.
const PEERS: usize = 1024;
/// Answers that wait at a time; further wrong tokens are refused at once with 429.
const WAITING: usize = 64;

/// A secret that lets in whoever knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token chosen by the user.
    ///
    /// # Errors
    /// It is too short, too long or holds characters that a header or an address cannot carry.
    pub fn new(text: &str) -> Result<Token, String> {
        let length = text.chars().count();
        if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&length) {
            return Err(format!(
                "a token of {length} characters; it may have {SHORTEST_TOKEN} to {LONGEST_TOKEN}"
            ));
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        if !text.chars().all(is_allowed) {
            return Err("a token may hold letters, digits and - . _ ~ only".into());
        }
        Ok(Token(text.to_owned()))
    }

    /// A token of 256 random bits.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Token, String> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| format!("no random numbers for a token: {error}"))?;
        Ok(Token(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The secret itself. Not to be logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn digest(&self) -> [u8; 32] {
        *blake3::hash(self.0.as_bytes()).as_bytes()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Who may come in and from where.
#[derive(Clone, Debug, Default)]
pub struct AccessSettings {
    /// Names and tokens; none lets everybody in.
    pub tokens: Vec<(String, Token)>,
    /// Origins of pages that may connect beside the server's own and loopback ones:
    /// `https://host:port`, or `*` for all.
    pub origins: Vec<String>,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An address; of IPv6 the network, since whoever has one address there has all of it.
    Address(IpAddr),
    /// The Unix socket.
    Local,
}

impl Peer {
    /// The peer with this address.
    pub fn of(address: IpAddr) -> Peer {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & !u128::from(u64::MAX);
                Peer::Address(Ipv6Addr::from_bits(network).into())
            }
            v4 => Peer::Address(v4),
        }
    }
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Missing,
    Wrong,
    Origin,
    Host,
}

impl Refusal {
    fn name(self) -> &'static str {
        match self {
            Refusal::Missing => "missing",
            Refusal::Wrong => "wrong",
            Refusal::Origin => "origin",
            Refusal::Host => "host",
        }
    }
}

/// The doorkeeper.
pub(super) struct Access {
    /// Digest of a token and whose it is.
    tokens: Vec<([u8; 32], Arc<Account>)>,
    /// The account of all where no token is asked for.
    everybody: Arc<Account>,
    origins: Vec<String>,
    tries: Mutex<Tries>,
    waiting: Semaphore,
}

/// How a request was let in.
struct Admission {
    account: Arc<Account>,
    /// The token, if it came as a query parameter: the answer sets the cookie.
    by_query: Option<String>,
}

impl Access {
    /// `account` makes the account of a name.
    pub(super) fn new(settings: &AccessSettings, account: impl Fn(&str) -> Account) -> Self {
        let tokens = settings
            .tokens
            .iter()
            .map(|(name, token)| (token.digest(), Arc::new(account(name))))
            .collect();
        Access {
            tokens,
            everybody: Arc::new(account("")),
            origins: settings.origins.clone(),
            tries: Mutex::default(),
            waiting: Semaphore::new(WAITING),
        }
    }

    fn admit(&self, request: &Request) -> Result<Admission, Refusal> {
        self.check_origin(request)?;
        if self.tokens.is_empty() {
            return Ok(Admission {
                account: self.everybody.clone(),
                by_query: None,
            });
        }
        let headers = request.headers();
        let by_query = query_token(request.uri());
        let mut any = false;
        let shown = bearer(headers)
            .map(|token| (token, None))
            .into_iter()
            .chain(by_query.iter().map(|token| (token.as_str(), Some(token))))
            .chain(cookies(headers).map(|token| (token, None)));
        for (token, query) in shown {
            any = true;
            if let Some(account) = self.account_of(token) {
                let by_query = query.cloned();
                return Ok(Admission { account, by_query });
            }
        }
        Err(if any {
            Refusal::Wrong
        } else {
            Refusal::Missing
        })
    }

    /// Compares with every token, whether or not one of them was right already.
    fn account_of(&self, shown: &str) -> Option<Arc<Account>> {
        let digest = blake3::hash(shown.as_bytes());
        let mut found = None;
        for (token, account) in &self.tokens {
            if bool::from(digest.as_bytes().ct_eq(token)) {
                found = Some(account.clone());
            }
        }
        found
    }

    /// A page of a stranger may make a browser send requests, with the cookie or to a loopback
    /// address, but not hide where it comes from.
    fn check_origin(&self, request: &Request) -> Result<(), Refusal> {
        let headers = request.headers();
        let host = text(headers, header::HOST);
        let upgrade = headers.contains_key(header::UPGRADE);
        if let Some(origin) = text(headers, header::ORIGIN)
            && (upgrade || !matches!(*request.method(), Method::GET | Method::HEAD))
            && !self.allows_origin(origin, host)
        {
            return Err(Refusal::Origin);
        }
        // Without tokens, a stranger's page could also give its own name the server's address.
        if self.tokens.is_empty()
            && let Some(host) = host
            && !is_loopback(name_of(host))
            && !self
                .origins
                .iter()
                .any(|o| o == "*" || authority(o) == host)
        {
            return Err(Refusal::Host);
        }
        Ok(())
    }

    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
        let from = authority(origin);
        let same = host.is_some_and(|host| from.eq_ignore_ascii_case(host));
        let is_web = origin.starts_with("http://") || origin.starts_with("https://");
        let listed = |o: &String| o == "*" || o.trim_end_matches('/').eq_ignore_ascii_case(origin);
        (is_web && (same || is_loopback(name_of(from)))) || self.origins.iter().any(listed)
    }

    /// How long this wrong token of a peer waits for its answer; an error is how long the peer
    /// should stay away.
    fn wait_for(&self, peer: Peer) -> Result<Duration, Duration> {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        tries.wait_for(peer, Instant::now())
    }
}

/// Wrong tokens of the recent past.
#[derive(Debug, Default)]
struct Tries(HashMap<Peer, Record>);

#[derive(Debug)]
struct Record {
    count: u32,
    last: Instant,
    /// When the last answer to a wrong token leaves.
    free_at: Instant,
}

impl Tries {
    fn wait_for(&mut self, peer: Peer, now: Instant) -> Result<Duration, Duration> {
        let fresh = |record: &Record| now.saturating_duration_since(record.last) < FORGET;
        if self.0.get(&peer).is_some_and(|record| !fresh(record)) {
            self.0.remove(&peer);
        }
        if self.0.len() >= PEERS && !self.0.contains_key(&peer) {
            self.0.retain(|_, record| fresh(record));
            if self.0.len() >= PEERS {
                let oldest = self.0.iter().min_by_key(|(_, record)| record.last);
                if let Some(oldest) = oldest.map(|(&peer, _)| peer) {
                    self.0.remove(&oldest);
                }
            }
        }
        let record = self.0.entry(peer).or_insert(Record {
            count: 0,
            last: now,
            free_at: now,
        });
        record.last = now;
        let step = FIRST_WAIT * 2u32.saturating_pow(record.count.min(10));
        let free_at = record.free_at.max(now) + step.min(LONGEST_STEP);
        let wait = free_at - now;
        if wait > LONGEST_WAIT {
            return Err(record.free_at.saturating_duration_since(now));
        }
        record.count += 1;
        record.free_at = free_at;
        Ok(wait)
    }
}

/// Lets requests in that show a right token; the account goes on with the request.
pub(super) async fn doorkeeper(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    let admission = match shared.access.admit(&request) {
        Ok(admission) => admission,
        Err(refusal) => {
            let peer = request.extensions().get::<Peer>().copied();
            return refuse(&shared, refusal, peer.unwrap_or(Peer::Local)).await;
        }
    };
    if let Err(wait) = admission.account.count_request() {
        shared.metrics.count_refusal("request_rate");
        return busy(
            StatusCode::TOO_MANY_REQUESTS,
            wait,
            "too many requests with this token",
        );
    }
    hide_token(&mut request);
    request.extensions_mut().insert(admission.account);
    let mut response = next.run(request).await;
    if let Some(token) = admission.by_query {
        let secure = if shared.settings.tls { "; Secure" } else { "" };
        let path = &shared.settings.path_prefix;
        let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path={path}/{secure}");
        if let Ok(mut value) = HeaderValue::from_str(&cookie) {
            value.set_sensitive(true);
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
    response
}

async fn refuse(shared: &Shared, refusal: Refusal, peer: Peer) -> Response {
    shared.metrics.count_auth_failure(refusal.name());
    tracing::warn!(?peer, reason = refusal.name(), "a request was not let in");
    match refusal {
        Refusal::Missing => {}
        Refusal::Wrong => {
            let waiting = shared.access.waiting.try_acquire();
            match shared.access.wait_for(peer) {
                Ok(wait) if waiting.is_ok() => tokio::time::sleep(wait).await,
                Ok(wait) | Err(wait) => {
                    shared.metrics.count_auth_failure("too_many");
                    let wait = wait.max(Duration::from_secs(1));
                    return busy(
                        StatusCode::TOO_MANY_REQUESTS,
                        wait,
                        "too many wrong tokens from this address",
                    );
                }
            }
        }
        Refusal::Origin => {
            let reason = "pages of this origin may not connect (--allow-origin)";
            return error(StatusCode::FORBIDDEN, reason);
        }
        Refusal::Host => {
            let reason = "without tokens the host has to be a loopback name (or --allow-origin)";
            return error(StatusCode::FORBIDDEN, reason);
        }
    }
    let reason = match refusal {
        Refusal::Wrong => "the token is wrong",
        _ => {
            "a token is needed: Authorization: Bearer TOKEN, the query parameter token, or the \
             cookie umaserve_token; umaserve connect shows it"
        }
    };
    let mut response = error(StatusCode::UNAUTHORIZED, reason);
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// An error as JSON.
pub(super) fn error(status: StatusCode, reason: &str) -> Response {
    let body = axum::Json(serde_json::json!({ "error": reason }));
    (status, body).into_response()
}

/// An error that goes away with time.
pub(super) fn busy(status: StatusCode, wait: Duration, reason: &str) -> Response {
    let mut response = error(status, reason);
    let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

fn query_token(uri: &Uri) -> Option<String> {
    let pairs = form_urlencoded::parse(uri.query()?.as_bytes());
    let mut tokens = pairs.filter(|(name, _)| name == PARAMETER);
    tokens.next().map(|(_, value)| value.into_owned())
}

/// Takes the token out of address and headers: nobody behind the door needs it.
fn hide_token(request: &mut Request) {
    let headers = request.headers_mut();
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::COOKIE);
    let Some(query) = request.uri().query() else {
        return;
    };
    let mut rest = form_urlencoded::Serializer::new(String::new());
    rest.extend_pairs(form_urlencoded::parse(query.as_bytes()).filter(|(n, _)| n != PARAMETER));
    let rest = rest.finish();
    let path = request.uri().path();
    let without = match rest.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{rest}"),
    };
    // What was an address stays one.
    if let Ok(uri) = without.parse() {
        *request.uri_mut() = uri;
    }
}

/// `host:port` of an origin or URL.
fn authority(origin: &str) -> &str {
    let after = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    after.split('/').next().unwrap_or(after)
}

/// The host without its port.
fn name_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    }
}

fn is_loopback(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_shows_itself_to_nobody() {
        let token = Token::random().unwrap();
        assert_eq!(token.reveal().len(), 43);
        assert_ne!(token, Token::random().unwrap());
        let settings = AccessSettings {
            tokens: vec![("me".into(), token.clone())],
            ..AccessSettings::default()
        };
        assert!(!format!("{settings:?}").contains(token.reveal()));
        assert!(Token::new("short").unwrap_err().contains("5 characters"));
        assert!(Token::new("with blanks and more").is_err());
        assert!(Token::new("0123456789abcdef").is_ok());
    }

    #[test]
    fn wrong_tokens_wait_longer_and_longer_and_then_are_turned_away() {
        let mut tries = Tries::default();
        let peer = Peer::of([10, 0, 0, 7].into());
        let now = Instant::now();
        let mut waits = Vec::new();
        let away = loop {
            match tries.wait_for(peer, now) {
                Ok(wait) => waits.push(wait),
                Err(wait) => break wait,
            }
        };
        assert_eq!(waits[0], FIRST_WAIT);
        assert!(waits.windows(2).all(|w| w[1] >= 2 * w[0]), "{waits:?}");
        assert!(away > Duration::ZERO && away <= LONGEST_WAIT);
        // Somebody else is not concerned, and later nobody is.
        assert_eq!(tries.wait_for(Peer::Local, now), Ok(FIRST_WAIT));
        assert_eq!(tries.wait_for(peer, now + 2 * FORGET), Ok(FIRST_WAIT));
    }

    #[test]
    fn the_memory_of_peers_is_bounded() {
        let mut tries = Tries::default();
        let now = Instant::now();
        for k in 0..5000u32 {
            let peer = Peer::of(std::net::Ipv4Addr::from_bits(k).into());
            let at = now + Duration::from_micros(k.into());
            assert_eq!(tries.wait_for(peer, at), Ok(FIRST_WAIT));
            assert!(tries.0.len() <= PEERS);
        }
        assert_eq!(tries.0.len(), PEERS);
        // One network of IPv6 is one peer.
        let of = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }

    #[test]
    fn origins_are_those_of_the_server_loopback_and_the_list() {
        let settings = AccessSettings {
            origins: vec!["https://lab.example".into()],
            ..AccessSettings::default()
        };
        let access = Access::new(&settings, Account::unlimited);
        let host = Some("node7.example:8000");
        for (origin, allowed) in [
            ("http://node7.example:8000", true),
            ("https://NODE7.example:8000", true),
            ("http://node7.example:8001", false),
            ("http://localhost:5174", true),
            ("http://127.0.0.1:9", true),
            ("http://[::1]:9", true),
            ("http://127.0.0.1.evil.example", false),
            ("http://localhost.evil.example:8000", false),
            ("https://lab.example", true),
            ("https://lab.example.evil", false),
            ("null", false),
            ("file://localhost", false),
            ("", false),
        ] {
            assert_eq!(access.allows_origin(origin, host), allowed, "{origin:?}");
        }
    }

    #[test]
    fn the_token_is_taken_out_of_the_request() {
        let mut request = Request::builder()
            .uri("/ws?a=1&token=secret-secret-secret&b=%26")
            .header("cookie", "x=1; umaserve_token=secret")
            .header("authorization", "Bearer secret")
            .body(axum::body::Body::empty())
            .unwrap();
        assert_eq!(query_token(request.uri()).unwrap(), "secret-secret-secret");
        assert_eq!(cookies(request.headers()).collect::<Vec<_>>(), ["secret"]);
        assert_eq!(bearer(request.headers()), Some("secret"));
        hide_token(&mut request);
        assert_eq!(request.uri(), "/ws?a=1&b=%26");
        assert!(request.headers().is_empty());
    }
}
