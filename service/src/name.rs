//! Names that an operator gives.

/// Declares a type of names: a text that keeps a rule. It is checked when it is read, so whoever gets one does not check it again. A text that does
/// not keep the rule is refused with the words of `expected`.
#[macro_export]
macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $keeps_rule:path, expected: $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> ::std::result::Result<Self, String> {
                if $keeps_rule(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err($expected.to_owned())
                }
            }
        }

        impl ::std::ops::Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl ::std::convert::AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl ::std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}
