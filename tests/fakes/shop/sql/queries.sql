-- name: orders
SELECT id FROM shop.orders ORDER BY id;
