//! Two sorted streams side by side, of which only one row each is held.

use std::pin::pin;

use futures_util::{Stream, TryStreamExt as _};

/// Why a merge ended early.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Broken<E> {
    Failed(E),
    /// A key does not come after the one before it.
    Repeated {
        in_source: bool,
    },
}

/// Calls `each` for every key in ascending order with what the two sides have for it.
///
/// # Errors
/// A stream fails, or is not strictly ascending.
pub(crate) async fn merge<K, T, E>(
    source: impl Stream<Item = Result<(K, T), E>>,
    view: impl Stream<Item = Result<(K, T), E>>,
    mut each: impl FnMut(K, Option<T>, Option<T>),
) -> Result<(), Broken<E>>
where
    K: Ord,
{
    let (mut source, mut view) = (pin!(source), pin!(view));
    let mut left = source.try_next().await.map_err(Broken::Failed)?;
    let mut right = view.try_next().await.map_err(Broken::Failed)?;
    loop {
        let (takes_left, takes_right) = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some((left, _)), Some((right, _))) => (left <= right, right <= left),
        };
        let mut from_source = None;
        if takes_left {
            let next = source.try_next().await.map_err(Broken::Failed)?;
            ascending(left.as_ref(), next.as_ref(), true)?;
            from_source = std::mem::replace(&mut left, next);
        }
        let mut from_view = None;
        if takes_right {
            let next = view.try_next().await.map_err(Broken::Failed)?;
            ascending(right.as_ref(), next.as_ref(), false)?;
            from_view = std::mem::replace(&mut right, next);
        }
        match (from_source, from_view) {
            (Some((key, source)), view) => each(key, Some(source), view.map(|(_, view)| view)),
            (None, Some((key, view))) => each(key, None, Some(view)),
            (None, None) => {}
        }
    }
}

fn ascending<K: Ord, T, E>(before: Option<&(K, T)>, after: Option<&(K, T)>, in_source: bool) -> Result<(), Broken<E>> {
    match (before, after) {
        (Some((before, _)), Some((after, _))) if after <= before => Err(Broken::Repeated { in_source }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::{Broken, merge};

    type Item = Result<(i64, char), &'static str>;
    type Seen = Vec<(i64, Option<char>, Option<char>)>;

    async fn merged(source: Vec<Item>, view: Vec<Item>) -> (Result<(), Broken<&'static str>>, Seen) {
        let mut seen = Vec::new();
        let ended = merge(stream::iter(source), stream::iter(view), |key, source, view| {
            seen.push((key, source, view));
        })
        .await;
        (ended, seen)
    }

    #[tokio::test]
    async fn every_key_comes_once_with_both_sides() {
        let (ended, seen) = merged(
            vec![Ok((-2, 'a')), Ok((1, 'b')), Ok((4, 'c'))],
            vec![Ok((1, 'B')), Ok((2, 'D')), Ok((4, 'C')), Ok((9, 'E'))],
        )
        .await;
        assert_eq!(ended, Ok(()));
        assert_eq!(
            seen,
            [
                (-2, Some('a'), None),
                (1, Some('b'), Some('B')),
                (2, None, Some('D')),
                (4, Some('c'), Some('C')),
                (9, None, Some('E'))
            ]
        );
    }

    #[tokio::test]
    async fn a_key_that_comes_twice_and_a_failing_stream_are_told() {
        let (ended, _) = merged(vec![], vec![Ok((1, 'a')), Ok((1, 'b'))]).await;
        assert_eq!(ended, Err(Broken::Repeated { in_source: false }));
        let (ended, _) = merged(vec![Ok((3, 'a')), Ok((2, 'b'))], vec![Ok((9, 'a'))]).await;
        assert_eq!(ended, Err(Broken::Repeated { in_source: true }));
        let (ended, _) = merged(vec![Ok((1, 'a')), Err("gone")], vec![]).await;
        assert_eq!(ended, Err(Broken::Failed("gone")));
    }
}
