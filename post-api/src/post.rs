//! What a client may say about a post.

use rest::{Fields, Object, Problem};

/// A title has at most this many characters. This is the width of its column.
const TITLE_MAX_CHARS: usize = 255;

/// A post as a request describes it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PostInput {
    pub(crate) title: String,
    pub(crate) content: String,
    /// A user's id. Whether there is such a user is not known here: the view may be behind.
    pub(crate) author_id: i64,
}

impl PostInput {
    /// Reads the three fields that a client sets. `id`, `createdAt`, `updatedAt`, the author's fields and unknown ones are ignored. Clients send back
    /// what they were given, and a client cannot change an author here.
    ///
    /// # Errors
    /// 422 naming every field that cannot be taken.
    pub(crate) fn parse(object: Object) -> Result<Self, Problem> {
        let mut fields = Fields::of(object);
        let post = Self {
            title: fields.text("title", TITLE_MAX_CHARS),
            content: fields.long_text("content"),
            author_id: fields.id("authorId"),
        };
        fields.check()?;
        Ok(post)
    }
}
