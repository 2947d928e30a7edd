//! Media types: which bodies are JSON, and who accepts JSON as an answer.

use axum::http::HeaderValue;

/// Whether a `Content-Type` names JSON: `application/json` or `application/*+json`, with any parameters. JSON is UTF-8 whatever `charset` says (RFC
/// 8259, section 11). A body in another encoding is refused when it is parsed.
pub(crate) fn is_json(content_type: Option<&HeaderValue>) -> bool {
    content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| names_json(without_parameters(text)))
}

/// Whether one of these `Accept` headers accepts JSON. Without any such header, everything is accepted. Weights (`q=`) are ignored, so that a client
/// with an odd header gets an answer.
pub(crate) fn accepts_json<'a>(mut accept: impl Iterator<Item = &'a HeaderValue>) -> bool {
    let Some(first) = accept.next() else {
        return true;
    };
    std::iter::once(first).chain(accept).any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',')
                .map(without_parameters)
                .any(|range| range == "*/*" || range.eq_ignore_ascii_case("application/*") || names_json(range))
        })
    })
}

/// A media type without its parameters.
fn without_parameters(text: &str) -> &str {
    let media_type = text.split_once(';').map_or(text, |(before, _)| before);
    media_type.trim()
}

fn names_json(media_type: &str) -> bool {
    let Some((kind, subtype)) = media_type.split_once('/') else {
        return false;
    };
    kind.eq_ignore_ascii_case("application")
        && (subtype.eq_ignore_ascii_case("json")
            || subtype
                .len()
                .checked_sub(5)
                .filter(|prefix| *prefix > 0)
                .and_then(|prefix| subtype.get(prefix..))
                .is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json")))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::{accepts_json, is_json};

    #[test]
    fn json_bodies_are_known_by_their_media_type() {
        let check = |text| is_json(Some(&HeaderValue::from_static(text)));
        for yes in [
            "application/json",
            "application/json;charset=UTF-8",
            "Application/JSON ; charset=utf-8",
            "application/vnd.api+json",
        ] {
            assert!(check(yes), "{yes}");
        }
        for no in [
            "",
            "text/plain",
            "text/json",
            "application/xml",
            "application/x-www-form-urlencoded",
            "application/+json",
            "application/jsonx",
            "json",
            "*/*",
        ] {
            assert!(!check(no), "{no}");
        }
        assert!(!is_json(None));
    }

    #[test]
    fn json_answers_are_accepted_or_not() {
        let check = |texts: &[&'static str]| {
            let values: Vec<_> = texts.iter().map(|text| HeaderValue::from_static(text)).collect();
            accepts_json(values.iter())
        };
        for yes in [
            &[] as &[&str],
            &["*/*"],
            &["application/*"],
            &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            &["application/problem+json"],
            &["application/json;q=0"],
            &["application/vnd.x+json"],
            &["application/*+json"],
            &["text/html", "application/json"],
        ] {
            assert!(check(yes), "{yes:?}");
        }
        for no in [
            &["application/xml"] as &[&str],
            &["text/csv"],
            &["text/html"],
            &["nonsense"],
        ] {
            assert!(!check(no), "{no:?}");
        }
    }
}
