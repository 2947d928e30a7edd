//! Scripts and styles, which the program carries in itself.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

/// A file of the program's own.
pub struct Asset {
    /// Its name below `/assets/`.
    pub name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $file:literal, $content_type:literal) => {
        Asset {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../../assets/", $file)),
        }
    };
}

/// All of them.
pub static ASSETS: [Asset; 5] = [
    asset!("console.css", "console.css", "text/css; charset=utf-8"),
    asset!("console.js", "console.js", "text/javascript; charset=utf-8"),
    asset!("tail.js", "tail.js", "text/javascript; charset=utf-8"),
    asset!("icon.svg", "icon.svg", "image/svg+xml"),
    asset!(
        "idiomorph-0.8.0.min.js",
        "vendor/idiomorph-0.8.0.min.js",
        "text/javascript; charset=utf-8"
    ),
];

impl Asset {
    /// Its tag: a hash of what it holds.
    fn tag(&self) -> String {
        let digest = digest::digest(&digest::SHA256, self.bytes);
        format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..12]))
    }

    /// Its address in a page. It changes with what the file holds, so a browser may keep the file for ever.
    #[must_use]
    pub fn address(&self) -> String {
        format!("/assets/{}?v={}", self.name, self.tag().trim_matches('"'))
    }
}

/// The address of the file of this name.
#[must_use]
pub fn address_of(name: &str) -> String {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    asset.map_or_else(|| format!("/assets/{name}"), Asset::address)
}

/// Serves them below `/assets/`, and the icon also where browsers look for one.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/assets/{name}", get(serve))
        // Browsers ask for it by themselves.
        .route(
            "/favicon.ico",
            get(async |headers: HeaderMap| serve(Path("icon.svg".to_owned()), headers).await),
        )
}

async fn serve(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let tag = asset.tag();
    let known = [
        (header::ETAG, tag.as_str()),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (header::CONTENT_TYPE, asset.content_type),
    ];
    let is_known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|tags| tags.as_bytes() == tag.as_bytes());
    if is_known {
        return (StatusCode::NOT_MODIFIED, known).into_response();
    }
    (known, asset.bytes).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use ring::digest;

    use super::ASSETS;

    /// The lines `file = …` and `sha256 = …` of VENDOR.toml.
    #[derive(serde::Deserialize)]
    struct Vendored {
        script: Vec<BTreeMap<String, String>>,
    }

    #[test]
    fn scripts_of_others_are_those_of_the_list_byte_for_byte() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/vendor");
        let list = fs::read_to_string(folder.join("VENDOR.toml")).unwrap();
        let vendored: Vendored = toml::from_str(&list).unwrap();
        let mut listed = vec!["VENDOR.toml".to_owned()];
        for script in vendored.script {
            let bytes = fs::read(folder.join(&script["file"])).unwrap();
            let hash: String = digest::digest(&digest::SHA256, &bytes)
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(hash, script["sha256"], "{}", script["file"]);
            assert!(folder.join(&script["license_file"]).is_file());
            assert!(script["file"].contains(&script["version"]));
            assert!(
                ASSETS.iter().any(|asset| asset.bytes == bytes),
                "{} is served",
                script["file"]
            );
            listed.extend([script["file"].clone(), script["license_file"].clone()]);
        }
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(listed.contains(&name), "{name} is not in VENDOR.toml");
        }
    }

    #[test]
    fn our_own_files_ask_nobody_else() {
        for asset in &ASSETS {
            let text = String::from_utf8_lossy(asset.bytes).replace("http://www.w3.org/", "");
            for address in ["http://", "https://", "//cdn"] {
                assert!(!text.contains(address), "{} has {address}", asset.name);
            }
        }
    }

    #[test]
    fn an_address_changes_with_what_the_file_holds() {
        let addresses: Vec<String> = ASSETS.iter().map(super::Asset::address).collect();
        assert!(addresses.iter().all(|address| address.contains("?v=")));
        assert_eq!(super::address_of("console.css"), addresses[0]);
    }
}
