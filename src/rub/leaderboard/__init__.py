"""Result folders of others: rules, copies, exports."""
