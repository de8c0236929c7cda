-- A keyed digest of the row's user, provider, server, token and IV. Only a row that has the right one
-- names the server its token is sent to; see `git_providers/account_mac.rs`.
ALTER TABLE integrations ADD COLUMN lucid_mac TEXT;
