//! JSON that says which version of its format it has.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Reads JSON whose field `format` must be `format`. What a later program has written is refused instead of half understood.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_json<T: DeserializeOwned>(json: &[u8], format: u32) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let found: Version = serde_json::from_slice(json).map_err(|err| err.to_string())?;
    if found.format != format {
        return Err(format!("format {}, this program knows format {format}", found.format));
    }
    serde_json::from_slice(json).map_err(|err| err.to_string())
}
