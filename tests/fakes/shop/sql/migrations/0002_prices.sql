ALTER TABLE shop.orders ADD COLUMN price numeric;
