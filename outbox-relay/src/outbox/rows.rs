//! Reads the values of an answer by the names of their columns.

use std::error::Error;
use std::str::FromStr;

use anyhow::Context;

use pg_replication::{Answer, Row};

/// A row whose values have names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamedRow<'a> {
    columns: &'a [(String, u32)],
    values: &'a Row,
}

/// The first row of the answer. `None`: it has no rows.
pub(crate) fn first_row(answer: &Answer) -> Option<NamedRow<'_>> {
    named_rows(answer).next()
}

/// All rows of the answer.
pub(crate) fn named_rows(answer: &Answer) -> impl Iterator<Item = NamedRow<'_>> {
    answer.rows.iter().map(|values| NamedRow {
        columns: &answer.columns,
        values,
    })
}

impl<'a> NamedRow<'a> {
    /// The text of a column that is never null.
    ///
    /// # Errors
    /// There is no such column, or it is null.
    pub(crate) fn text(&self, column: &str) -> anyhow::Result<&'a str> {
        self.nullable(column)?
            .with_context(|| format!("column `{column}` of the answer is null"))
    }

    /// The text of a column. `None`: it is null.
    ///
    /// # Errors
    /// There is no such column.
    pub(crate) fn nullable(&self, column: &str) -> anyhow::Result<Option<&'a str>> {
        let index = column_index(self.columns, column)?;
        let value = self.values.get(index);
        let value = value.with_context(|| format!("a row ends before its column `{column}`"))?;
        Ok(value.as_deref())
    }

    /// The value of a column that is never null.
    ///
    /// # Errors
    /// As [`NamedRow::text`], or the text cannot be parse_text.
    pub(crate) fn parse<T>(&self, column: &str) -> anyhow::Result<T>
    where
        T: FromStr,
        T::Err: Error + Send + Sync + 'static,
    {
        parse_text(self.text(column)?, column)
    }

    /// The value of a column. `None`: it is null.
    ///
    /// # Errors
    /// There is no such column, or the text cannot be parse_text.
    pub(crate) fn parse_nullable<T>(&self, column: &str) -> anyhow::Result<Option<T>>
    where
        T: FromStr,
        T::Err: Error + Send + Sync + 'static,
    {
        self.nullable(column)?.map(|text| parse_text(text, column)).transpose()
    }

    /// Whether a boolean column is true.
    ///
    /// # Errors
    /// As [`NamedRow::text`].
    pub(crate) fn is_true(&self, column: &str) -> anyhow::Result<bool> {
        Ok(self.text(column)? == "t")
    }
}

fn parse_text<T>(text: &str, column: &str) -> anyhow::Result<T>
where
    T: FromStr,
    T::Err: Error + Send + Sync + 'static,
{
    text.parse()
        .with_context(|| format!("column `{column}` of the answer is `{text}`"))
}

/// The index of the column of this name. For [`text_at`].
///
/// # Errors
/// There is no such column.
pub(crate) fn column_index(columns: &[(String, u32)], column: &str) -> anyhow::Result<usize> {
    let index = columns.iter().position(|(name, _)| name == column);
    index.with_context(|| format!("column `{column}` of the answer is missing"))
}

/// The text of the column at this index of a row that was taken out of its answer. [`NamedRow::text`] reads rows that are still in their answer.
///
/// # Errors
/// The value is missing, or null.
pub(crate) fn text_at(row: &Row, index: usize) -> anyhow::Result<&str> {
    row.get(index)
        .and_then(Option::as_deref)
        .with_context(|| format!("the value at index {index} of a row is missing"))
}

#[cfg(test)]
mod tests {
    use super::{first_row, named_rows};
    use pg_replication::Answer;

    #[test]
    fn values_are_found_by_the_names_of_their_columns() {
        let answer = Answer {
            columns: vec![("slot".to_owned(), 25), ("active_pid".to_owned(), 23)],
            rows: vec![vec![Some("users".to_owned()), None], vec![None, Some("x".to_owned())]],
        };
        let row = first_row(&answer).unwrap();
        assert_eq!(row.text("slot").unwrap(), "users");
        assert_eq!(row.parse_nullable::<i32>("active_pid").unwrap(), None);
        assert!(row.text("active_pid").unwrap_err().to_string().contains("is null"));
        assert!(row.text("plugin").unwrap_err().to_string().contains("is missing"));
        let second = named_rows(&answer).nth(1).unwrap();
        let wrong = second.parse::<i32>("active_pid").unwrap_err();
        assert_eq!(wrong.to_string(), "column `active_pid` of the answer is `x`");
    }
}
