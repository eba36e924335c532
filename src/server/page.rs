//! The viewer page: the files of `viewer/dist`, which are in the binary if the page was built
//! before it (`make page`). A debug build reads them from disk, so that the page can be changed
//! without compiling.
//!
//! Nothing here needs a token: the page is the same for everyone and holds no secrets.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

#[derive(rust_embed::Embed)]
#[folder = "viewer/dist"]
#[allow_missing = true]
struct Files;

/// The page loads its own files and talks to its own server, nothing else; nobody else frames it.
/// `data:` is for the pictures of its style sheet, `blob:` for the files that it lets users save.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                      img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; \
                      worker-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'self'";

/// Files under `assets` carry the hash of their content in their name.
const FOREVER: &str = "public, max-age=31536000, immutable";
/// Others are asked for again, and answered "not modified" while they are the same.
const REVALIDATE: &str = "no-cache";

pub(super) async fn index(headers: HeaderMap) -> Response {
    answer("index.html", &headers, REVALIDATE).unwrap_or_else(|| {
        let page = include_str!("no_page.html");
        ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
    })
}

pub(super) async fn icon(headers: HeaderMap) -> Response {
    answer("icon.svg", &headers, REVALIDATE).unwrap_or_else(not_found)
}

pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    // Only names that were embedded are found: this cannot lead elsewhere. A debug build looks on
    // disk, where `rust_embed` refuses what lies outside of the folder.
    answer(&format!("assets/{name}"), &headers, FOREVER).unwrap_or_else(not_found)
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "no such file\n").into_response()
}

fn answer(name: &str, asked: &HeaderMap, caching: &'static str) -> Option<Response> {
    let says = |key: header::HeaderName, word: &str| {
        asked
            .get(key)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.contains(word))
    };
    let plain = Files::get(name)?;
    let hash = plain.metadata.sha256_hash();
    let tag: String = hash[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let squeezed = says(header::ACCEPT_ENCODING, "gzip")
        .then(|| Files::get(&format!("{name}.gz")))
        .flatten();
    // Another encoding is another representation.
    let tag = format!("\"{tag}{}\"", if squeezed.is_some() { "-gz" } else { "" });
    let mut headers = HeaderMap::new();
    let mut set = |key, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(key, value);
        }
    };
    set(header::ETAG, &tag);
    set(header::CACHE_CONTROL, caching);
    set(header::VARY, "Accept-Encoding");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    if says(header::IF_NONE_MATCH, &tag) {
        return Some((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let mut set = |key, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(key, value);
        }
    };
    set(header::CONTENT_TYPE, plain.metadata.mimetype());
    let data = match squeezed {
        Some(squeezed) => {
            set(header::CONTENT_ENCODING, "gzip");
            squeezed.data
        }
        None => plain.data,
    };
    Some((headers, data.into_owned()).into_response())
}
