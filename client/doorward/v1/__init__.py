"""The contract's messages and stubs, generated from `protos/doorward/v1/` by `make proto`. Never edited."""
