//! Walks through two sorted streams side by side. It holds only one row of each in memory.

use std::pin::pin;

use futures_util::{Stream, TryStreamExt as _};

/// Why a merge ended early.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MergeError<E> {
    StreamFailed(E),
    /// A key of this stream is not greater than the key before it.
    NotAscending(Input),
}

/// One of the two streams that are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Source,
    View,
}

/// Calls `on_key` once for every key of either stream, in ascending order: with the key, the value of the source and the value of the view.
/// A value is `None` if its stream lacks the key.
///
/// # Errors
/// A stream fails, or its keys are not strictly ascending.
pub(crate) async fn merge<K, T, E>(
    source: impl Stream<Item = Result<(K, T), E>>,
    view: impl Stream<Item = Result<(K, T), E>>,
    mut on_key: impl FnMut(K, Option<T>, Option<T>),
) -> Result<(), MergeError<E>>
where
    K: Ord,
{
    let (mut source, mut view) = (pin!(source), pin!(view));
    let mut source_row = source.try_next().await.map_err(MergeError::StreamFailed)?;
    let mut view_row = view.try_next().await.map_err(MergeError::StreamFailed)?;
    loop {
        let (takes_source, takes_view) = match (&source_row, &view_row) {
            (None, None) => return Ok(()),
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some((source_key, _)), Some((view_key, _))) => (source_key <= view_key, view_key <= source_key),
        };
        let mut from_source = None;
        if takes_source {
            let next = source.try_next().await.map_err(MergeError::StreamFailed)?;
            ensure_ascending(source_row.as_ref(), next.as_ref(), Input::Source)?;
            from_source = std::mem::replace(&mut source_row, next);
        }
        let mut from_view = None;
        if takes_view {
            let next = view.try_next().await.map_err(MergeError::StreamFailed)?;
            ensure_ascending(view_row.as_ref(), next.as_ref(), Input::View)?;
            from_view = std::mem::replace(&mut view_row, next);
        }
        match (from_source, from_view) {
            (Some((key, source)), view) => on_key(key, Some(source), view.map(|(_, view)| view)),
            (None, Some((key, view))) => on_key(key, None, Some(view)),
            (None, None) => {}
        }
    }
}

fn ensure_ascending<K: Ord, T, E>(
    before: Option<&(K, T)>,
    after: Option<&(K, T)>,
    input: Input,
) -> Result<(), MergeError<E>> {
    match (before, after) {
        (Some((before, _)), Some((after, _))) if after <= before => Err(MergeError::NotAscending(input)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::{Input, MergeError, merge};

    type StreamItem = Result<(i64, char), &'static str>;
    type Calls = Vec<(i64, Option<char>, Option<char>)>;

    async fn merged(source: Vec<StreamItem>, view: Vec<StreamItem>) -> (Result<(), MergeError<&'static str>>, Calls) {
        let mut calls = Vec::new();
        let ended = merge(stream::iter(source), stream::iter(view), |key, source, view| {
            calls.push((key, source, view));
        })
        .await;
        (ended, calls)
    }

    #[tokio::test]
    async fn every_key_comes_once_with_both_sides() {
        let (ended, calls) = merged(
            vec![Ok((-2, 'a')), Ok((1, 'b')), Ok((4, 'c'))],
            vec![Ok((1, 'B')), Ok((2, 'D')), Ok((4, 'C')), Ok((9, 'E'))],
        )
        .await;
        assert_eq!(ended, Ok(()));
        assert_eq!(
            calls,
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
        assert_eq!(ended, Err(MergeError::NotAscending(Input::View)));
        let (ended, _) = merged(vec![Ok((3, 'a')), Ok((2, 'b'))], vec![Ok((9, 'a'))]).await;
        assert_eq!(ended, Err(MergeError::NotAscending(Input::Source)));
        let (ended, _) = merged(vec![Ok((1, 'a')), Err("gone")], vec![]).await;
        assert_eq!(ended, Err(MergeError::StreamFailed("gone")));
    }
}
