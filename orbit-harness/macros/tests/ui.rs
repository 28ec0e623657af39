//! What the attribute says of its faults, and where.

#[test]
fn faults_are_told_where_they_are() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
